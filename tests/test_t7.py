"""t7.py against files that Torch7 wrote (tests/reference/t7) and bytes assembled by hand."""

import gc
import math
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from support.t7_parts import i, number, q, s, storage, tensor, torch_object, written

from formats import t7

REFERENCE = Path(__file__).parent / "reference" / "t7"
FILES = sorted(REFERENCE.glob("*.t7"))


def plain(value, seen=()):
    """The tree with dicts for tables and lists for tensors, so that == compares what is in it."""
    if isinstance(value, torch.Tensor):
        return (
            value.dtype,
            tuple(value.shape),
            value.stride(),
            value.storage_offset(),
            value.tolist(),
        )
    if isinstance(value, t7.Storage):
        return value.typename, value.data.tolist()
    if isinstance(value, t7.Table):
        if id(value) in seen:
            return "again"
        inner = (*seen, id(value))
        return {key: plain(item, inner) for key, item in value.items()}
    return value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_rewriting_gives_the_bytes_that_torch_wrote(path):
    original = path.read_bytes()
    ascii = original[0] >= ord("0")
    for value in (t7.load(path), t7.loads(original)):
        assert written(value, ascii) == original
    other = written(t7.load(path), not ascii)  # through the other encoding and back
    assert written(t7.loads(other), not ascii) == other
    if path.name != "types.t7":  # its NaN loses the sign in ascii
        assert written(t7.loads(other), ascii) == original


@pytest.mark.parametrize("name", ["types.t7", "types.ascii.t7"])
def test_every_type_has_its_true_value(name):
    tree = t7.load(REFERENCE / name)
    whole = [[9, -18, 27], [-36, 45, -54]]
    for kind, dtype in [("Char", "int8"), ("Short", "int16"), ("Int", "int32"), ("Long", "int64")]:
        assert tree[kind].tolist() == whole and tree[kind].dtype == getattr(torch, dtype)
    assert (
        tree["Byte"].tolist() == [[9, 18, 27], [36, 45, 54]] and tree["Byte"].dtype == torch.uint8
    )
    thirds = np.array([1, -2, 3, -4, 5, -6], "f4").reshape(2, 3) / np.float32(3)
    assert np.array_equal(tree["Float"].numpy(), thirds)
    sevenths = np.array([1, -2, 3, -4, 5, -6], "f8").reshape(2, 3) / 7
    assert np.allclose(tree["Double"].numpy(), sevenths, rtol=2e-16, atol=0)  # one rounding
    assert tree["scalar"] == 0.1 and tree["neg"] == -1e300 and tree["inf"] == math.inf
    assert tree["scalar_int"] == 3 and isinstance(tree["scalar_int"], int)
    assert (tree["yes"], tree["no"], tree["str"], tree["empty_str"]) == (True, False, "hello", "")
    assert tree["bytes"].encode("utf-8", "surrogateescape") == b"\x00\xff\n\xc8"
    assert tree["nested"]["a"]["b"]["c"] == 1
    assert tree["self"] is tree
    mixed = {1: "one", 3: "three", t7.Boolean.TRUE: "bool", "x": "ex", 2.5: "frac"}
    assert dict(tree["mixed"]) == mixed
    assert tree["list"].array()[:3] == [10, "a", False]
    assert tree["list"].array()[3].array() == [1, 2]
    assert tree["long_max"].tolist() == [2**53, -(2**53)]
    assert tree["empty"].shape == (0,) and tree["empty"].dtype == torch.float32
    assert tree["storage"].typename == "torch.LongStorage"
    assert tree["storage"].data.tolist() == [5, 6, 7]
    if name == "types.t7":  # these two cannot be written in ascii
        assert tree["fn"].code.startswith(b"\x1bLJ") and len(tree["fn"].upvalues) == 0
        special = tree["special"].tolist()
        assert math.isnan(special[0]) and special[1:3] == [math.inf, -math.inf]
        assert math.copysign(1, special[3]) == -1


@pytest.mark.parametrize("name", ["types.t7", "types.ascii.t7"])
def test_views_share_memory_as_in_lua(name):
    tree = t7.load(REFERENCE / name)
    base = torch.arange(1.0, 25.0, dtype=torch.float64).view(4, 6)
    assert torch.equal(tree["base"], base) and tree["same"] is tree["base"]
    assert tree["shared"] is tree["nested"]
    assert torch.equal(tree["transposed"], base.t())
    assert torch.equal(tree["narrowed"], base[:, 1:4])
    assert torch.equal(tree["selected"], base[2])
    assert torch.equal(tree["expanded"], torch.tensor([1.0, 2, 3]).double()[:, None].expand(3, 4))
    assert tree["expanded"].stride() == (1, 0)
    tree["selected"][0] = -1
    assert tree["base"][2, 0] == -1 and tree["transposed"][0, 2] == -1


@pytest.mark.parametrize("name", ["mlp.t7", "mlp.ascii.t7"])
def test_a_net_computes_what_it_computed_in_torch(name):
    net, truth = t7.load(REFERENCE / name), np.load(REFERENCE / "mlp.npz")
    first, relu, second, last = net["modules"].array()
    assert [layer.typename for layer in (first, relu, second, last)] == [
        "nn.Linear",
        "nn.ReLU",
        "nn.Linear",
        "nn.LogSoftMax",
    ]
    parameters = [first["weight"], first["bias"], second["weight"], second["bias"]]
    flat = torch.cat([parameter.flatten() for parameter in parameters])
    # ascii has nine digits, which determine a float32
    assert np.array_equal(flat.numpy(), truth["params_flat"])
    assert len({parameter.untyped_storage().data_ptr() for parameter in parameters}) == 1
    x = torch.from_numpy(truth["x"])
    hidden = torch.relu(x @ first["weight"].t() + first["bias"])
    y = torch.log_softmax(hidden @ second["weight"].t() + second["bias"], 1)
    assert np.abs(y.numpy() - truth["y"]).max() < 1e-6  # float32 sums in another order


def test_binary_and_ascii_twins_are_the_same_tree():
    for name in ("types", "mlp"):
        binary = t7.load(REFERENCE / f"{name}.t7")
        for missing_in_ascii in ("fn", "special"):
            binary.pop(missing_in_ascii, None)
        ascii = t7.load(REFERENCE / f"{name}.ascii.t7")
        if name == "types":
            assert plain(binary) == plain(ascii)
        else:
            for ours, theirs in zip(binary["modules"].array(), ascii["modules"].array()):
                assert plain(ours["gradInput"]) == plain(theirs["gradInput"])
                assert plain(ours.get("weight")) == plain(theirs.get("weight"))


def test_tensors_are_aligned_and_are_not_the_file(tmp_path):
    for pad in range(8):  # every alignment a storage can have
        path, data = tmp_path / f"{pad}.t7", torch.arange(5.0, dtype=torch.float64)
        t7.save(path, {"k" * (pad + 1): data})
        before = path.read_bytes()
        loaded = t7.load(path)["k" * (pad + 1)]
        assert loaded.data_ptr() % 8 == 0 and torch.equal(loaded, data)
        loaded.mul_(2)
        assert loaded[4] == 8 and path.read_bytes() == before


@pytest.mark.parametrize("kind", ["Cuda", "CudaDouble", "CudaHalf", "CudaLong", "CudaByte", "Half"])
def test_gpu_and_half_types_keep_their_name(kind):
    dtype = {"Cuda": "f4", "CudaDouble": "f8", "CudaLong": "i8", "CudaByte": "u1"}.get(kind, "f2")
    data = tensor(kind, [2, 2], [2, 1], 1, storage(kind, np.array([1, 2, 3, 4], dtype)))
    value = t7.loads(data)
    assert value.tolist() == [[1, 2], [3, 4]] and value.numpy().dtype == np.dtype(dtype)
    assert getattr(value, "typename", "torch.HalfTensor") == f"torch.{kind}Tensor"
    assert written(value) == data
    assert t7.loads(written(value, ascii=True)).tolist() == [[1, 2], [3, 4]]


def test_longs_of_four_bytes_are_recognised():
    head = i(4, 1) + s("V 1") + s("torch.LongTensor") + i(2) + i(2, 3, 3, 1, 1)
    data = head + i(4, 2) + s("V 1") + s("torch.LongStorage") + i(6) + i(1, 2, 3, -4, 5, 6)
    assert t7.loads(data).tolist() == [[1, 2, 3], [-4, 5, 6]]
    data = (
        i(3, 1, 2)
        + number(1)
        + head.replace(i(4, 1), i(4, 2), 1)
        + data[len(head) :].replace(i(4, 2), i(4, 3), 1)
    )
    data += i(2) + s("x") + torch_object(4, "torch.FloatTensor", i(0) + i(1) + i(0))
    tree = t7.loads(data)
    assert tree[1].shape == (2, 3) and tree["x"].shape == (0,)


def test_files_older_than_versions():
    data = i(4, 1) + s("torch.FloatStorage") + q(2) + struct.pack("<2f", 1, 2)
    assert t7.loads(data).data.tolist() == [1, 2]
    value = t7.loads(i(4, 1) + s("nn.Old") + i(3, 2, 0))
    assert (value.typename, value.version, len(value)) == ("nn.Old", 0, 0)


@pytest.mark.parametrize("kind", [6, 7, 8])
def test_functions_are_kept_and_not_run(kind):
    head = i(6) if kind == 6 else i(kind, 1)
    upvalues = i(3, 2, 1) + number(1) + i(4, 3) + s("V 1") + s("A") + i(3, 4, 0)
    data = i(3, 9, 2) + number(1) + head + s("\x1bLJ code") + upvalues + number(2)
    data += (i(3, 2)) if kind == 6 else i(kind, 1)
    function = t7.loads(data)[1]
    assert function.code == b"\x1bLJ code" and function.upvalues[1].typename == "A"
    assert t7.loads(data)[2] is not None
    again = t7.loads(written(t7.loads(data)))[1]
    assert (again.code, again.kind) == (function.code, kind)


def test_classes_that_write_themselves_otherwise():
    fields = i(3, 4, 1) + i(2) + s("dimension") + number(1)
    gpus = i(3, 2, 1) + number(1) + number(1)
    parallel = torch_object(1, "nn.DataParallelTable", gpus + fields, "V 3")
    value = t7.loads(parallel)
    assert dict(value.header) == {1: 1} and dict(value) == {"dimension": 1} and value.version == 3
    old = t7.loads(torch_object(1, "nn.DataParallelTable", fields, "V 1"))
    assert old.header is None and dict(old) == {"dimension": 1}
    again = t7.loads(written(value))
    assert dict(again.header) == {1: 1} and dict(again) == {"dimension": 1}


def test_python_values_are_written_as_lua_would_have_them():
    shared = [1, 2.5, None, "x"]
    data = torch.arange(6.0)
    value = {
        "list": shared,
        "again": shared,
        True: b"\xff",
        "row": data.view(2, 3)[1],
        "all": data,
        "empty": torch.empty(0, dtype=torch.int16),
        "none": None,
        "minus": -0.0,
        "param": torch.nn.Parameter(torch.ones(1)),
    }
    for ascii in (False, True):
        tree = t7.loads(written(value, ascii))
        assert dict(tree["list"]) == {1: 1, 2: 2.5, 4: "x"} and tree["again"] is tree["list"]
        assert tree[t7.Boolean.TRUE].encode("utf-8", "surrogateescape") == b"\xff"
        assert "none" not in tree and tree["empty"].dtype == torch.int16
        assert math.copysign(1, tree["minus"]) == -1
        tree["all"][3] = 10
        assert tree["row"].tolist() == [10, 4, 5]


def test_a_save_that_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "twice.t7"
    t7.save(path, [torch.arange(1000.0)])
    with pytest.raises(ValueError):
        t7.save(path, [torch.ones(1), object()])
    assert t7.load(path)[1][999] == 999 and len(list(tmp_path.iterdir())) == 1


def test_what_lua_cannot_hold_is_refused():
    for value in (
        2**53 + 1,
        object(),
        torch.tensor(1.0),
        torch.ones(1, dtype=torch.bfloat16),
        {1j: 2},
    ):
        with pytest.raises(ValueError):
            written(value)
    data = torch.ones(4)
    with pytest.raises(ValueError, match="over the same memory"):
        written([data, data.view(torch.int32)])


def test_deeper_nesting_than_any_nets_is_refused():
    tree = None
    for _ in range(150):
        tree = t7.Object("nngraph.Node", {"next": tree})
    assert t7.loads(written(tree)).typename == "nngraph.Node"
    with pytest.raises(ValueError, match="150 deep"):
        t7.loads(written(t7.Table({1: tree})))


FLOATS = storage("Float", np.zeros(4, "f4"))
BROKEN = {
    "nothing": (b"", "is empty"),
    "no type": (i(9), "9 is not a type"),
    "big endian": (struct.pack(">i", 4) + b"\0" * 20, "is not a type"),
    "half a number": (number(1)[:-1], "8|1 numbers"),
    "bytes after the value": (number(1) + b"x", "1 bytes follow"),
    "long string": (i(2, 2**31 - 1) + b"abc", "2147483647 characters"),
    "negative string": (i(2, -1) + b"abc", "-1 characters"),
    "long table": (i(3, 1, 2**31 - 1) + b"abc", "2147483647 pairs"),
    "negative table": (i(3, 1, -2), "-2 pairs"),
    "key nil": (i(3, 1, 1) + i(0) + number(1), "the key None"),
    "key nan": (i(3, 1, 1) + number(math.nan) + number(1), "the key nan"),
    "key twice": (i(3, 1, 2) + (number(1) + i(5, 1)) * 2, "the key 1 twice"),
    "long storage": (torch_object(1, "torch.FloatStorage", q(2**61)), "elements"),
    "negative storage": (torch_object(1, "torch.FloatStorage", q(-1)), "-1 elements"),
    "many dimensions": (torch_object(1, "torch.FloatTensor", i(2**30)), "1073741824 dimensions"),
    "size past the end": (tensor("Float", [5], [1], 1, FLOATS), "storage of 4"),
    "stride past the end": (tensor("Float", [2, 2], [3, 1], 1, FLOATS), "storage of 4"),
    "offset past the end": (tensor("Float", [1], [1], 5, FLOATS), "storage of 4"),
    "offset zero": (tensor("Float", [1], [1], 0, FLOATS), "offset 0"),
    "negative size": (tensor("Float", [-1], [1], 1, FLOATS), r"size \(-1,\)"),
    "negative stride": (tensor("Float", [2], [-1], 2, FLOATS), r"stride \(-1,\)"),
    "elements beyond a long": (tensor("Float", [2**40, 2**40], [0, 0], 1, FLOATS), "storage of 4"),
    "empty beyond a long": (tensor("Float", [0, 2**62, 4], [1, 1, 1], 1, FLOATS), "storage of 4"),
    "no storage": (tensor("Float", [1], [1], 1, i(0)), "storage of 0"),
    "foreign storage": (tensor("Double", [1], [1], 1, FLOATS), "something other than its storage"),
    "a table for a storage": (tensor("Float", [1], [1], 1, i(3, 2, 0)), "something other"),
    "itself for a storage": (tensor("Float", [1], [1], 1, i(4, 1)), "left"),
    "type changes": (i(3, 1, 1) + number(1) + i(4, 1), "object 1 was of type 3"),
    "unknown payload": (torch_object(1, "torch.Generator", number(1)), "unknown form"),
    "fields of another": (i(3, 1, 1) + number(1) + torch_object(2, "A", i(3, 1)), "unknown form"),
    "half a file": ((REFERENCE / "types.t7").read_bytes()[:1500], "left"),
    "half an ascii file": ((REFERENCE / "types.ascii.t7").read_bytes()[:900], "no number"),
    "ascii letters": (b"3\n1\nabc\n", "no number found"),
    "ascii underscores": (b"1\n1_0\n", "no number found"),
    "ascii long digits": (b"1\n" + b"1" * 1000 + b"\n", "no number found"),
    "ascii long storage": (b"4\n1\n3\nV 1\n18\ntorch.FloatStorage\n9" + b"0" * 17, "elements"),
    "ascii overflow": (b"4\n1\n3\nV 1\n17\ntorch.ByteStorage\n99999999999999999999\n", "too large"),
    "ascii small type": (b"4\n1\n3\nV 1\n18\ntorch.ShortStorage\n1\n70000\n", "too large"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_with_name_and_byte(name, tmp_path):
    data, reason = BROKEN[name]
    path = tmp_path / "broken.t7"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"broken\.t7: byte \d+: .*({reason})"):
        t7.load(path)
    with pytest.raises(ValueError, match=rf"x\.t7: byte \d+: .*({reason})"):
        t7.loads(data, "x.t7")


def test_truncated_files_are_refused():
    for path in FILES:
        data = path.read_bytes().rstrip(b"\n")
        for length in range(0, len(data), 1 + len(data) // 150):
            if data[0] >= ord("0") and not data[length:].strip(b"0123456789"):
                continue  # what is left of a last number in ascii is a number too
            with pytest.raises(ValueError):
                t7.loads(data[:length])


def test_lies_cost_neither_time_nor_memory():
    giant = tensor("Float", [2**31, 2**31], [0, 0], 1, FLOATS)
    deep = b"".join(i(3, n, 1) + number(1) for n in range(1, 20_000))
    chain = b"".join(torch_object(n, "A", i(3, n + 1, 1) + number(1)) for n in range(1, 40_000, 2))
    wide = i(3, 1, 2**28) + i(0, 0) * 1000
    seconds, peaks = 0, []
    gc.collect()
    gc.freeze()  # what other tests have left need not be searched again and again
    tracemalloc.start()
    for data in (deep, chain, wide, *(data for data, _ in BROKEN.values())):
        gc.collect()  # an error holds the frames it came through until the collector comes by
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        started = time.process_time()
        with pytest.raises(ValueError):
            t7.loads(data)
        seconds += time.process_time() - started
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()
    gc.unfreeze()
    assert t7.loads(giant).shape == (2**31, 2**31)  # expanded: four elements in memory
    assert seconds < 10
    assert max(peaks) < 10e6  # the inputs are 1.4 MB


def test_no_code_and_no_class_is_reached():
    evil = "os.system"
    value = t7.loads(torch_object(1, evil, i(3, 2, 1) + i(2) + s("__class__") + i(2) + s("x")))
    assert type(value) is t7.Object and value.typename == evil and value["__class__"] == "x"
