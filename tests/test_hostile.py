"""Files from strangers: any plain value at any place of a checkpoint is one sentence, no more."""

import math
import os
import pickle

import pytest
import torch
from support.tiny import entered

import checkpoints
import opts
from runtime.errors import InputError
from storage import atomic, schema


@pytest.fixture
def folder(tmp_path):
    with entered(tmp_path) as run:
        run.epoch(1)
        run.epoch(2)
    return tmp_path


def refused(folder):
    """What a resume of this folder says: one sentence."""
    with pytest.raises(InputError) as error:
        opts.settle({"dataset": "cifar10", "depth": 20}, checkpoints.latest(str(folder)))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    return str(error.value)


def crafted(folder, name, **changes):
    """A file with some of its values changed."""
    path = folder / name
    atomic.save(path, atomic.load(path) | changes)
    return str(path)


NOT_NAMES = ["../model_2.pth", "/etc/passwd", "a/b", "..", "", "a\0b", 3, None, ["model_2.pth"]]


@pytest.mark.parametrize("key", ["modelFile", "optimFile"])
@pytest.mark.parametrize("name", NOT_NAMES)
def test_latest_names_files_of_its_folder(folder, key, name):
    crafted(folder, "latest.pth", **{key: name})
    assert "should be a file in the same folder" in refused(folder)


@pytest.mark.parametrize("value", [None, 3, [], {}, "text", {"epoch": 1}, torch.zeros(2)])
def test_latest_of_other_types(folder, value):
    atomic.save(folder / "latest.pth", value)
    said = refused(folder)
    assert "latest.pth names" in said or "latest.pth does not name" in said


@pytest.mark.parametrize("epoch", [-1, "2", 2.0, None, True, torch.tensor(2)])
def test_epochs(folder, epoch):
    crafted(folder, "optimState_2.pth", epoch=epoch)
    assert "not a checkpoint of this program: its epoch is" in refused(folder)
    crafted(folder, "latest.pth", epoch=epoch)
    assert "latest.pth does not name a checkpoint" in refused(folder)


HUGE = torch.zeros(1).expand(10**12)
SUMS = {"done": 1, "seen": 8, "wrong1": 1, "wrong5": 1, "loss": 1.0}
PLACE = {"epoch": 3, "order": [8, 0, False], "train": SUMS, "test": SUMS}


@pytest.mark.parametrize(
    "name, value",
    [
        ("best", None),
        ("best", (1.0,)),
        ("best", ("1", "2")),
        ("options", []),
        ("options", {"LR": "0.1"}),
        ("options", {"LR": -1.0}),
        ("options", {"LR": math.inf}),
        ("options", {"LR": math.nan}),
        ("options", {"batchSize": 0}),
        ("options", {"nGPU": 10.5}),
        ("options", {"precision": "octuple"}),
        ("options", {"LRSteps": [1, 2]}),
        ("options", {"LRSteps": ("a",)}),
        ("momentum", []),
        ("momentum", {"weight": 1.0}),
        ("momentum", {"weight": torch.zeros(3, 9, dtype=torch.int64)}),
        ("momentum", {"weight": HUGE}),
        ("position", 3),
        ("position", {}),
        ("position", {**PLACE, "epoch": -1}),
        ("position", {**PLACE, "train": {**SUMS, "done": -5}}),
        ("position", {**PLACE, "test": {**SUMS, "loss": "low"}}),
        ("position", {"epoch": 3, "order": []}),
        ("scaler", {"scale": 1.0}),
        ("scaler", 1),
        ("log", ["line"]),
        ("log", {}),
        ("logged", {"first": 1, "size": -1, "crc": 7}),
        ("logged", {}),
        ("agents", "all"),
    ],
)
def test_states(folder, name, value):
    crafted(folder, "optimState_2.pth", **{name: value})
    if name == "options" and value:
        name = f"-{next(iter(value))}"
    assert f"optimState_2.pth is not a checkpoint of this program: its {name} is" in refused(folder)


@pytest.mark.parametrize("name", ["epoch", "best", "options", "momentum"])
def test_what_must_be_there(folder, name):
    path = folder / "optimState_2.pth"
    content = atomic.load(path)
    del content[name]
    atomic.save(path, content)
    assert "optimState_2.pth is " in refused(folder)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("name", ["latest.pth", "optimState_2.pth"])
@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(value)])
def test_code_is_refused_and_no_older_file_taken_instead(folder, monkeypatch, name, save):
    monkeypatch.chdir(folder)
    value = {"epoch": 2, "modelFile": Evil()}
    save(value if save is torch.save else pickle.dumps(value, 2), folder / name)
    assert f"{name} holds more than tensors and plain values: it asks for" in refused(folder)
    assert not os.path.exists("owned")


def test_what_the_program_writes_is_right(folder):
    assert schema.read_state(folder / "optimState_2.pth")["epoch"] == 2
    for n in range(3):
        assert (n > 0) == schema.is_count(n - 1)
