"""What strangers' files may do, by kind: every one is refused in a sentence, or does no harm.

Each kind is tried at every way in. The counts of the long test are printed.
"""

import collections
import contextlib
import gzip
import io
import math
import os
import pickle
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import torch
from PIL import Image
from support import hostile, nets
from support.detectors import classifier, detector
from support.runs import ROOT

import models
import opts
from datasets import cache
from datasets.image import decoding
from detection import files, show
from engine.metrics import Metrics
from evaluation import predictions
from formats import model_files
from models.resnet import resnet
from runtime.errors import InputError, shown, visible
from runtime.options import whole
from storage import archives, atomic, curves, schema

SUMS = {"done": 1, "seen": 8, "wrong1": 1, "wrong5": 1, "loss": 1.0}
STATE = {
    "epoch": 2,
    "best": [5.0, 1.0],
    "options": {"LR": 0.1, "momentum": 0.9, "batchSize": 8, "precision": "single"},
    "momentum": {"weight": torch.zeros(3, 9), "bias": torch.zeros(3)},
    "scaler": {},
    "position": {"epoch": 3, "order": [8, 0, False], "train": SUMS, "test": SUMS},
    "log": [{"options": {"LR": 0.1}}, {"epoch": 1, "train": [1.0, 2.0]}, {"epoch": 2}],
    "logged": {"first": 1, "size": 300, "crc": 7},
    "agents": ["host 1 2"],
    "digest": 5,
}


def read_state(path):
    """As a resume does: the fields by the schema, the metrics by the class that has them."""
    state = schema.read_state(str(path))
    for split in ("train", "test") if (state.get("position") or {}).get("epoch") else ():
        Metrics.restored(state["position"][split], str(path))
    return opts.saved_options(state)


def packed():
    content = models.pack(nets.ours(resnet(8, 3, "cifar", "A"), ["cat", "Hündin", "fox"], nets.OWN))
    return {**content, "model": dict(content["model"])}


def outcome(read, path):
    """ "accepted" or "refused"; asserts that a refusal is one sentence that names the file."""
    try:
        read(path)
    except InputError as error:
        text = str(error)
        assert "\n" not in text and "\x1b" not in text and len(text) < 400 + len(str(path))
        assert str(path) in text
        return "refused"
    return "accepted"


WAYS = {"model": models.load_file, "state": read_state, "image": decoding.decode}
WAYS["photo"] = lambda path: decoding.Photo(path, np.empty(9, np.uint8))
WAYS["log"] = curves.read_log


@pytest.mark.parametrize("way", WAYS)
def test_special_files(way, tmp_path):
    for path in hostile.special(tmp_path).values():
        assert outcome(WAYS[way], path) == "refused"


def test_special_files_as_a_cache(tmp_path):
    for n, path in enumerate(hostile.special(tmp_path).values()):
        os.mkdir(folder := tmp_path / f"gen {n}")
        os.symlink(path, folder / "digits.npz")
        with pytest.raises(InputError, match="cannot prepare digits: it is a"):
            cache.info(types.SimpleNamespace(dataset="digits", gen=str(folder)))


COMMANDS = [
    "main.py -dataset digits -depth 20 -retrain",
    "main.py -dataset digits -depth 20 -optimState",
    "evaluate.py -dataset digits",
    "evaluate.py net.pth -dataset digits -classes",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_special_files_on_the_command_line(command, tmp_path):
    (tmp_path / "net.pth").write_text("is not read")
    program, *words = command.split()
    path = hostile.special(tmp_path)["to fifo"]
    words = [sys.executable, os.path.join(ROOT, program), *words, path]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert path in result.stderr and "it is a pipe, not a regular file" in result.stderr


@pytest.fixture(scope="module")
def costly():
    return hostile.costly_models()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("way", ["model", "state"])
def test_small_files_that_cost_much(way, costly, tmp_path):
    for kind, data in costly.items():
        (tmp_path / "file").write_bytes(data)
        found = hostile.cost(WAYS[way], tmp_path / "file")
        assert found.kind in ("InputError", "Damaged"), (kind, found)
        assert found.memory < 40_000_000 + 10 * len(data), (kind, found)


def test_a_refused_pickle_does_not_count_for_the_next():
    """It appends 400,000 values to None."""
    with pytest.raises(ValueError):
        archives.verify_pickle(io.BytesIO(b"\x80\x02N(" + b"K\x01" * 400_000 + b"e."), "crafted")
    archives.verify_pickle(io.BytesIO(pickle.dumps([1, 2], 2)), "whole")


@pytest.mark.parametrize("depth", [20, 200])
def test_a_net_may_have_any_depth(monkeypatch, tmp_path, depth):
    """The bound on values grows with the tensors of a file, and with nothing else."""
    monkeypatch.setattr(archives, "MOST", 500)
    blocks = {f"layer1.{n}.bn1.weight": torch.ones(n + 1) for n in range(depth)}
    atomic.save(tmp_path / "net.pth", {"model": blocks})
    assert len(atomic.load(tmp_path / "net.pth")["model"]) == depth
    atomic.save(tmp_path / "net.pth", {"model": blocks, "x": [None] * (501 + 40 * depth)})
    with pytest.raises(InputError, match="holds over .* values, or values that contain"):
        atomic.load(tmp_path / "net.pth")


def test_pictures_that_cost_much():
    for kind, data in hostile.costly_images().items():
        with pytest.raises(InputError, match="pixels|scans|size") as error:
            decoding.decode(io.BytesIO(data))
        assert "\n" not in str(error.value), kind


def test_large_empty_files(tmp_path):
    heads = {"image": b"\xff\xd8", "model": b"PK\3\4", "state": b"\x80\2", "log": b"{}"}
    for way, head in heads.items():
        (tmp_path / "file").write_bytes(head)
        os.truncate(tmp_path / "file", 10**12)
        found = hostile.cost(WAYS[way], tmp_path / "file")
        assert found.kind in ("InputError", "Damaged") and found.memory < 10_000_000, (way, found)


def test_packed_zeros(tmp_path):
    (tmp_path / "net.t7.gz").write_bytes(gzip.compress(bytes(1 << 26)))
    assert outcome(models.load_file, tmp_path / "net.t7.gz") == "refused"
    np.savez_compressed(tmp_path / "digits.npz", signature="", images=np.zeros(1 << 20))
    found = cache.info(types.SimpleNamespace(dataset="digits", gen=str(tmp_path)))
    assert "images" not in found  # it was made again


# Values


MAY_BE_NONE = {("classes",), ("preprocessing",), ("position", "epoch"), ("logged", "first")}
NUMBERS = {int, float}


def is_right(before, kind, place):
    """Whether the program can have written this kind of value in the place of another."""
    value = hostile.VALUES[kind]
    if place == ("config",):
        return True  # then it is another program's file, and its net is inferred
    if isinstance(value, torch.Tensor):
        return kind in ("tensor", "half") and place[0] == "momentum"
    if value is None and place in MAY_BE_NONE:
        return True
    if place[0] == "log" and len(place) > 1 and place[-1] != "epoch":
        return True  # for people
    if place[:2] == ("position", "order") and (len(place) == 3 or isinstance(value, dict)):
        return True  # only compared; values that have no name there are those of the options
    if type(value) is not type(before) and not {type(value), type(before)} <= NUMBERS:
        return False
    if place[0] == "position" and place[-1] == "loss":
        return math.isfinite(value)  # as any metric that is no count
    if type(value) in NUMBERS:
        return 0 <= value < math.inf or (place[0] == "best" and value == math.inf)
    return True


def tried(read, content, path, step):
    """Counter of what becomes of each value in each place, one in `step` of them."""
    cases = [(p, k) for p in hostile.places(content) for k in hostile.VALUES]
    found = collections.Counter()
    for place, kind in cases[::step]:
        torch.save(hostile.changed(content, place, hostile.VALUES[kind]), path)
        what = outcome(read, path)
        if what == "accepted":
            assert is_right(hostile.at(content, place), kind, place), (place, kind)
        found[what] += 1
    return found


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 11])
def test_every_value_in_every_place_of_a_state(tmp_path, step):
    print("state:", found := tried(read_state, STATE, tmp_path / "state.pth", step))
    assert found["refused"] > found["accepted"]


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 17])
def test_every_value_in_every_place_of_a_model(tmp_path, step):
    content = packed()
    assert outcome(models.load_file, tmp_path / "none") == "refused"
    print("model:", found := tried(models.load_file, content, tmp_path / "net.pth", step))
    assert found["refused"] > 9 * found["accepted"]


def kinds_of_files():
    """{kind: (how it is read, a right content, the place of weights or momentum in it)}."""
    detects = models.pack(detector(shared=False, net=classifier(8, 2, "cifar", "A")))
    weights = ("model", "fc.weight")
    return {
        "model": (models.load_file, packed(), weights),
        "state dict": (models.load_file, packed()["model"], weights[1:]),
        "wrapped": (
            models.load_file,
            {"state_dict": packed()["model"]},
            ("state_dict", *weights[1:]),
        ),
        "state": (read_state, STATE, ("momentum", "weight")),
        "detector": (
            lambda path: files.load_detector(str(path)),
            detects,
            ("model", "backbone.conv1.weight"),
        ),
        "inside": (read_state, {**packed(), **STATE}, ("momentum", "weight")),
    }


FILES = ("model", "state dict", "wrapped", "state", "detector", "inside")


@pytest.mark.parametrize("kind", FILES)
def test_attributes_of_dicts_and_parameters_hide_nothing(kind, tmp_path):
    """Weights of NaN are found whatever a file says to items, numel, isfinite, and all others."""
    read, content, place = kinds_of_files()[kind]
    torch.save(hostile.answering(content, 3), tmp_path / "file.pth")
    assert outcome(read, tmp_path / "file.pth") == "accepted"
    wrong = hostile.changed(content, place, hostile.at(content, place) * math.nan)
    torch.save(hostile.answering(wrong, collections.OrderedDict), tmp_path / "file.pth")
    assert outcome(read, tmp_path / "file.pth") == "refused"


def odd_dtypes():
    """All types that PyTorch has but those that weights may be of."""
    found = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    return sorted(found - {torch.float16, torch.bfloat16, torch.float32, torch.float64}, key=str)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["model", "state"])
def test_weights_of_types_that_pytorch_cannot_compute(kind, tmp_path):
    read, content, place = kinds_of_files()[kind]
    like, path, tried = hostile.at(content, place), tmp_path / "file.pth", 0
    values = [torch.nested.nested_tensor([torch.ones(2)]), like.to_sparse(), like.to("meta")]
    for dtype in odd_dtypes():
        with contextlib.suppress(RuntimeError, NotImplementedError):  # it cannot be made
            values.append(torch.empty(like.shape, dtype=dtype))
    for value in values:
        try:
            torch.save(hostile.changed(content, place, value), path)
        except (RuntimeError, NotImplementedError, AttributeError, LookupError):
            continue  # nor saved
        tried += 1
        assert outcome(read, path) == "refused", value.dtype
    assert tried > 15


KINDS = {"nan": math.nan, "infinity": math.inf, "negative infinity": -math.inf}


@pytest.mark.parametrize("extension", [".pth", ".safetensors", ".t7"])
def test_weights_that_are_not_finite(extension, tmp_path):
    """In any tensor, at its end; and a variance below zero, another dtype, a missing entry."""
    content, path = packed(), tmp_path / f"net{extension}"
    names = [name for name, tensor in content["model"].items() if tensor.ndim]
    for name in names[::3] + [n for n in names if n.endswith("running_var")][:1]:
        kinds = KINDS | ({"negative": -1.0} if name.endswith("running_var") else {})
        for kind, value in kinds.items():
            tensor = content["model"][name].clone()
            tensor.view(-1)[-1] = value
            model_files.write(str(path), hostile.changed(content, ("model", name), tensor))
            assert outcome(models.load_file, path) == "refused", (name, kind)
    half = hostile.changed(content, ("model", "fc.bias"), content["model"]["fc.bias"].half())
    for wrong in (half, hostile.lacking(content, ("model", "fc.bias"))):
        torch.save(wrong, path)
        assert outcome(models.load_file, path) == "refused"
    model_files.write(str(path), content)
    assert outcome(models.load_file, path) == "accepted"


@pytest.mark.parametrize("count", [0, 4, 10_000])
def test_numbers_of_class_names(count, tmp_path):
    """Three would be right, or fewer after -nClasses 3."""
    torch.save({**packed(), "classes": ["a"] * count}, tmp_path / "net.pth")
    assert outcome(models.load_file, tmp_path / "net.pth") == "refused"


@pytest.mark.parametrize("classes", [["a"], ["a", "b"]])
@pytest.mark.parametrize("extension", model_files.EXTENSIONS)
def test_fewer_class_names_than_outputs(classes, extension, tmp_path):
    """-nClasses leaves outputs without a class, and data may have a single one."""
    path = str(tmp_path / "net") + extension
    model_files.write(path, {**packed(), "classes": classes})
    assert models.load_file(path).classes == classes


def test_weights_in_half_but_for_the_batch_norms(tmp_path):
    """As some programs train them: a kind of file that is right."""
    content = packed()
    norms = {name.rpartition(".")[0] for name in content["model"] if "running_mean" in name}
    for name, tensor in content["model"].items():
        if name.rpartition(".")[0] not in norms:
            content["model"][name] = tensor.half()
    torch.save(content["model"], tmp_path / "net.pth")
    assert outcome(models.load_file, tmp_path / "net.pth") == "accepted"


# Options


@pytest.mark.parametrize("value", ["1e9", "1e30", "1e300", "-1e30", "9007199254740993e3"])
def test_numbers_that_no_machine_holds(value, capsys):
    """Each is an option error, or costs nothing; PyTorch is not asked."""
    harmless = {
        "nEpochs",
        "epochNumber",
        "batchSize",
        "recomputeBN",
        "keep",
        "freeze",
        "manualSeed",
        "printEvery",
    }
    for name, _, kind, _, _ in opts.OPTIONS:
        if kind is whole and not (value == "1e9" and name in harmless):
            with pytest.raises(SystemExit) as error:
                opts.parse([f"-{name}", value, "-dataset", "cifar10"])
            text = capsys.readouterr().err
            assert error.value.code == 2 and text.count("\n") == 1 and f"-{name}" in text


def test_a_net_that_no_machine_holds_is_refused_without_torch():
    words = ["-cardinality", "1e3", "-baseWidth", "1e4", "-dataset", "cifar10", "-depth", "29"]
    program = f"import sys, opts\nsys.modules['torch'] = None\nopts.parse({words})"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert (
        result.returncode == 2 and "the paths should have at most 16384 together" in result.stderr
    )


# Output


def test_names_cannot_command_a_terminal():
    odd = "a\x1b[2J\r\n\a\x9b\u202e\u2066\ud800b"
    plain = "a\\x1b[2J\\r\\n\\x07\\x9b\\u202e\\u2066\\ud800b"
    assert visible(odd) == str(InputError(odd)) == plain
    assert visible("Hündin 犬 👩‍🔬") == "Hündin 犬 👩‍🔬"
    assert len(shown([odd] * 10**5)) <= 80 and shown(3.5) == "3.5"


PRINTING = """
from runtime import command, terminal
odd = "a\\x1b[2J\\r\\n\\ud800\\udcffb"
def main():
    with terminal.Terminal():
        terminal.say(" * Best", odd, "\\t1\\n")
        terminal.note("=>", odd)
        print(odd.replace(chr(27), ""))
command.run(main)
"""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_lone_surrogates_print(encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-c", PRINTING]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, env=environment)
    assert result.returncode == 0
    line = b"a\\x1b[2J\\r\\n\\ud800\\udcffb"
    assert result.stdout.startswith(b" * Best " + line + b" \t1\n\n")
    assert result.stderr == b"=> " + line + b"\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to ulimit -v")
@pytest.mark.parametrize("kilobytes", [1_000_000, 2_000_000])
@pytest.mark.parametrize("script", ["main.py -dataset digits -depth 20", "convert.py a.pth b.t7"])
def test_too_little_memory_to_begin(script, kilobytes, tmp_path):
    program, *words = script.split()
    command = f"ulimit -v {kilobytes}; exec {sys.executable} {os.path.join(ROOT, program)} "
    result = subprocess.run(
        command + " ".join(words), shell=True, cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and "out of memory: this process may use" in result.stderr


@pytest.mark.parametrize("name", ["W" * 100_000, "\x1b\n" * 50_000, "\ud800\udc80", "", "\u732b"])
def test_class_names_of_any_text_are_drawn(name, tmp_path):
    """Cut, with escapes for what has no letter, so that time and size do not depend on the name."""
    start = time.process_time()
    found = {"boxes": np.array([[9, 99, 400, 400]]), "scores": np.ones(1), "labels": np.ones(1)}
    image = show.draw(np.zeros((3, 480, 480), np.uint8), found, [name], 0.5)
    assert image.size == (480, 480) and (np.array(image)[99:] == 0).mean() > 0.8  # above the box
    predictions.write_confusion(str(tmp_path / "x.png"), np.arange(2), np.arange(2), [name, "b"])
    with Image.open(tmp_path / "x.png") as drawn:
        assert max(drawn.size) < 2000
    assert time.process_time() - start < 15
