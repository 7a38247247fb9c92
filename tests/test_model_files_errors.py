"""Model files that are damaged, hostile or none: each is refused in one sentence."""

import os
import pickle
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.nets import OWN, refused, small

import models
from formats import model_files
from runtime import regular_files
from runtime.errors import InputError


@pytest.fixture
def net():
    return small()


class Trap:
    """What would make a folder, if it were unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_is_not_run(net, tmp_path):
    path, trap = tmp_path / "net.pth", Trap(tmp_path / "trap")
    content = models.pack(net)
    for saved in (trap, {**content, "classes": trap}, {**net.state_dict(), "x": trap}):
        for zipped in (True, False):
            torch.save(saved, path, _use_new_zipfile_serialization=zipped)
            refused(path)
        path.write_bytes(pickle.dumps(saved, 2))
        refused(path)
    torch.save(net, path)  # a whole net, which is code too
    refused(path)
    assert not os.path.exists(trap.path)


@pytest.mark.parametrize("extension", model_files.EXTENSIONS)
def test_a_file_that_is_cut(net, extension, tmp_path):
    path = str(tmp_path / "net") + extension
    model_files.write(path, models.pack(net))
    size = os.path.getsize(path)
    for length in (size - 1, size // 2, 100, 9, 3, 1, 0):
        os.truncate(path, length)
        refused(path)


def test_a_file_with_changed_bytes(net, tmp_path):
    path, random = tmp_path / "net", torch.Generator().manual_seed(0)
    legacy = str(tmp_path / "legacy.pth")
    torch.save(net.state_dict(), legacy, _use_new_zipfile_serialization=False)
    sources = [str(tmp_path / "net") + extension for extension in model_files.EXTENSIONS]
    for source in sources:
        model_files.write(source, models.pack(net))
    good = bad = 0
    for source in (*sources, legacy):
        whole = Path(source).read_bytes()
        for _ in range(40):
            damaged = bytearray(whole)
            for at, value in torch.randint(0, 2000, (2, 2), generator=random).tolist():
                damaged[at] = value % 256
            path.write_bytes(damaged)
            try:
                models.load_file(path)
                good += 1
            except InputError as error:
                assert "\n" not in str(error)
                bad += 1
    assert good and bad


def test_what_is_no_model_file(net, tmp_path):
    refused(tmp_path / "none.pth", "File not found")
    refused(tmp_path, "model_best.pth, nor model.safetensors or pytorch_model.bin")
    for data in (b"", b"hello", b"4 apples", b"\x89PNG\r\n", bytes(50), b"PK\3\4" + bytes(50)):
        (tmp_path / "file").write_bytes(data)
        refused(tmp_path / "file")
    for saved in ([1], {}, {"epoch": 3}):
        torch.save(saved, tmp_path / "file")
        refused(tmp_path / "file", "no state dict")
    torch.save({"x": torch.ones(1, dtype=int)}, tmp_path / "file")
    refused(tmp_path / "file", "'x' has no place")
    for name, shape in (("conv1.weight", (64, 3, 1, 1)), ("layer1.0.conv1.bias", (128,))):
        row = torch.ones(1).expand(10**9, *shape)  # nothing may be computed of it
        torch.save({**net.state_dict(), name: row}, tmp_path / "file")
        refused(tmp_path / "file", f"'{name}' is not a tensor of weights")


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"depth": 6 * 10**9 + 2}},
        {"config": {"classes": 10**12}},
        {"config": {"cardinality": 10**9}},
        {"config": {"depth": "29"}},
        {"config": {"net": 3}},
        {"config": {"net": "../resnet"}},
        {"config": {"net": "formats"}},
        {"config": {"size": 3}},
        {"classes": 3},
        {"classes": ["a", 3]},
        {"model": {}},
        {"model": None},
        {"model": {"conv1.weight": torch.ones(3)}},
        {"model": {"fc.weight": torch.ones(3)}},
        {"preprocessing": {}},
        {"preprocessing": 3},
        {"preprocessing": {**OWN, "mean": (1, 2)}},
        {"preprocessing": {**OWN, "std": (0.0, 1.0, 1.0)}},
        {"preprocessing": {**OWN, "crop": "224"}},
        {"preprocessing": {**OWN, "largest": float("nan")}},
    ],
    ids=str,
)
def test_a_file_of_ours_with_wrong_values(net, change, tmp_path):
    content = models.pack(net)
    if "config" in change:
        change = {"config": {**content["config"], **change["config"]}}
    torch.save({**content, **change}, tmp_path / "net.pth")
    refused(tmp_path / "net.pth")


def test_a_header_of_safetensors_that_no_net_has(tmp_path):
    length = (1 << 24) + 8  # parsed JSON may take 25 times its size
    header = b'{"__metadata__":{"config":"[]"}}'.ljust(length)
    (tmp_path / "net.safetensors").write_bytes(length.to_bytes(8, "little") + header)
    refused(tmp_path / "net.safetensors", "is not a model file")


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "3", '{"net": "resnet"}', '{"net": []}'])
def test_metadata_of_safetensors_that_are_wrong(net, text, tmp_path):
    state = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(
        state, path, {"config": text, "classes": "null", "preprocessing": "null"}
    )
    refused(path)
    safetensors.torch.save_file(state, path, {"config": text})  # somebody else's
    assert models.load_file(path).config["cardinality"] == 2


def zipped(path, names, data=b"data"):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, data)


def joined(path, *parts):
    path.write_bytes(b"".join(parts))


def tarred(path, *names):
    with tarfile.open(path, "w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))


def cut(path, save, state):
    save({name: tensor.contiguous() for name, tensor in state.items()}, path)
    path.write_bytes(path.read_bytes()[:-99])


OTHERS = {
    "TorchScript": (
        lambda net, path: torch.jit.trace(net, torch.zeros(1, 3, 8, 8)).save(path),
        "torch.jit.load(FILE).state_dict()",
    ),
    "TorchScript of old": (lambda _, path: zipped(path, ["a/constants.pkl", "a/data.pkl"]), "jit"),
    "torch.export": (
        lambda net, path: zipped(path, ["a/archive_format", "a/data/weights/w"]),
        "torch.export.load(FILE)",
    ),
    "a net in a dict": (
        lambda net, path: torch.save({"net": net, "epoch": 3}, path),
        "objects that need code, such as a models.blocks.Net",
    ),
    "a whole net": (lambda net, path: torch.save(net, path), "an object, a models.blocks.Net"),
    "Detectron2": (
        lambda net, path: joined(path, pickle.dumps({"model": {}, "__author__": "x"})),
        "a pickle of Detectron2",
    ),
    "joblib": (lambda _, path: joined(path, pickle.dumps("joblib.numpy")), "a pickle of joblib"),
    "pickle 2": (lambda _, path: joined(path, pickle.dumps({"a": 1}, 2)), "is a pickle, which"),
    "protocol 4": (
        lambda net, path: torch.save(net.state_dict(), path, pickle_protocol=4),
        "uses pickle protocol 4",
    ),
    "ONNX": (lambda _, path: joined(path, b"\x08\x0a\x12\x07pytorch\x1a\x03"), "an ONNX file"),
    **{
        name: (lambda _, path, head=head: joined(path, head, bytes(99)), f"is {words}")
        for name, head, words in [
            (
                "Core ML 1",
                b"\x08\1\x12\x84\1\n\x10\n\5image\x1a",
                "a file of Core ML, which has no state dict",
            ),
            ("Core ML 7", b"\x08\7\x12\n\n\4\n\2xy\x1a", "a file of Core ML, which"),
            ("ONNX of ten letters", b"\x08\7\x12\nexporter10", "an ONNX file"),
            (
                "OpenVINO",
                b'<?xml version="1.0"?>\n<net name="x" version="11">',
                "a file of OpenVINO, which",
            ),
            ("a page of errors", b'<?xml version="1.0"?>\n<Error><Code>AccessDenied', "a web page"),
            ("GGUF", b"GGUF\3\0\0\0", "not a model file: it does not begin"),
        ]
    },
    "Git LFS": (
        lambda _, path: joined(path, b"version https://git-lfs.github.com/spec/v1\noid sha256:4d"),
        "git lfs pull",
    ),
    **{
        f"HTML {start}": (lambda _, path, start=start: joined(path, start, b" ..."), "a web page")
        for start in (b"\n <!DOCTYPE html>", b"\xef\xbb\xbf<html>", b"<head>", b"<!-- x --><body>")
    },
    **{
        f"a zip of {name}": (lambda _, path, name=name: zipped(path, ["a/", name]), "unpack it")
        for name in ("a/net.pth", "net.pth.tar", "last.ckpt", "net.t7.gz", "__MACOSX/._net.pt")
    },
    "other zip": (lambda _, path: zipped(path, ["a.txt"]), "a zip archive without a model"),
    "NumPy": (lambda _, path: zipped(path, ["a.npy"]), "an archive of NumPy"),
    "Keras": (lambda _, path: joined(path, b"\x89HDF\r\n\x1a\n"), "an HDF5 file"),
    "Keras 3": (lambda _, path: zipped(path, ["config.json", "model.weights.h5"]), "of Keras"),
    "SavedModel": (lambda _, path: joined(path, b"\x08\1\x12\xf4\x10"), "a SavedModel of Tensor"),
    "Flax": (lambda _, path: joined(path, b"\x81\xa6params\x81"), "a msgpack file, as Flax writes"),
    "zlib": (lambda _, path: joined(path, zlib.compress(b"a" * 99)), "perhaps by joblib"),
    "one array": (lambda _, path: joined(path, b"\x93NUMPY\1\0"), "an array of NumPy"),
    "PyTorch 0.1": (
        lambda _, path: tarred(path, "sys_info", "pickle", "tensors", "storages"),
        "older than PyTorch 0.2: if you trust it, torch.save(torch.load(FILE, weights_only=False)",
    ),
    "tar": (lambda _, path: tarred(path, "net.pth"), "an archive: unpack it"),
    "text": (lambda _, path: joined(path, b"Entry not found\n"), "a text file"),
    "zeros": (lambda _, path: joined(path, bytes(999)), "does not begin like"),
    "xz": (lambda _, path: joined(path, b"\xfd7zXZ\0\0"), "an archive: unpack it"),
    "JSON": (lambda _, path: joined(path, b'{\n  "architecture": "resnet18"'), "a JSON file"),
    "nothing": (lambda _, path: joined(path), "it is empty"),
    "an old whole net": (
        lambda net, path: torch.save(net, path, _use_new_zipfile_serialization=False),
        "holds a whole net, which needs code",
    ),
    **{
        f"an archive with the pickle {data}": (
            lambda _, path, data=data: zipped(path, ["a/data.pkl"], data),
            "is damaged or not a file of this program: it is cut short or changed",
        )
        for data in (
            b"",
            b"x",
            b"\x80\2",
            b"\x80\2}",
            b"\xff" * 9,
            b"\x80\2X\xff\xff\xff\xff",
            b"Ix\n.",
        )
    },
    "cut short": (lambda net, path: cut(path, torch.save, net.state_dict()), "it is cut short"),
    "cut safetensors": (
        lambda net, path: cut(path, safetensors.torch.save_file, net.state_dict()),
        "is damaged: its header does not fit the file",
    ),
    "half": (
        lambda net, path: joined(path, pickle.dumps(0x1950A86A20F9469CFC6C, 2)),
        "is damaged",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.filterwarnings("ignore")
def test_another_file_is_named(net, kind, tmp_path):
    make, words = OTHERS[kind]
    path = tmp_path / "net.pth"
    make(net, path)
    text = refused(path, words)
    for raw in (
        "enforce fail",
        "pop from",
        "Weights only",
        "opcode",
        "position",
        "exhausted",
        "literal",
        "PytorchStreamReader",
        "zip file",
        "deserializing",
    ):
        assert raw not in text


@pytest.mark.parametrize(
    "name, names",
    [
        ("resnext101", "torchvision:resnext101_32x8d or torchvision:resnext101_64x4d"),
        ("resnext50_", "torchvision:resnext50_32x4d"),
        ("resnet50", "torchvision:resnet50"),
        ("wide_resnet50_2", "torchvision:wide_resnet50_2"),
        ("resnet20", None),  # torchvision has none
        ("r", None),
    ],
)
def test_a_bare_name_of_torchvision(name, names):
    hint = f"File not found: {name}"
    hint += f"; torchvision's weights have the name {names}" if names else ""
    for read in (models.load_file, regular_files.check_input):
        with pytest.raises(InputError, match=f"^{hint}$"):
            read(name)
        with pytest.raises(InputError, match="^File not found: my/resnet50.pth$"):
            read("my/resnet50.pth")
