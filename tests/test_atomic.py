"""Files are whole or absent, and never run code."""

import argparse
import math
import os
import pickle
from collections import Counter, OrderedDict

import pytest
import torch
from support import hostile

from runtime.errors import InputError
from storage import atomic


def test_round_trip(tmp_path):
    path = tmp_path / "a.pth"
    value = {"weights": torch.arange(3.0), "best": (1.5, 2.5), "names": ["a", "ü"], "none": None}
    atomic.save(path, value)
    loaded = atomic.load(path)
    assert torch.equal(loaded.pop("weights"), value.pop("weights"))
    assert loaded == value
    assert os.listdir(tmp_path) == ["a.pth"]


def test_a_failure_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.pth"
    atomic.save(path, 1)
    with pytest.raises(ZeroDivisionError), atomic.replacing(path) as file:
        file.write(b"half of it")
        raise ZeroDivisionError
    assert atomic.load(path) == 1
    assert os.listdir(tmp_path) == ["a.pth"]


@pytest.mark.parametrize("answer", [3, OrderedDict], ids=["3", "a class"])
def test_what_is_read_answers_by_its_own_methods(tmp_path, answer):
    """Whatever attributes the file gives its dicts and parameters, at any depth."""
    inner, names = {"weights": torch.tensor([[1.0, math.nan]])}, hostile.settable()
    value = hostile.answering({"a": inner, "b": [(inner, torch.ones(2))]}, answer, names)
    namespace = argparse.Namespace(model=hostile.answering(inner, answer), items=3, values=3)
    more = hostile.Call(Counter, {"n": 2}, attributes={"items": answer, "__len__": answer})
    torch.save({"x": value, "c": namespace, "d": torch.Size([2]), "n": more}, tmp_path / "a.pth")
    loaded = atomic.load(tmp_path / "a.pth")

    def look(value):
        assert type(value) in (dict, list, tuple, torch.Tensor, int)
        assert not getattr(value, "__dict__", None)
        if type(value) in (dict, list, tuple):
            for part in value.values() if type(value) is dict else value:
                look(part)

    look(loaded)
    found = loaded["x"]["a"], loaded["x"]["b"][0][0], loaded["c"]["model"]
    assert all(
        torch.equal(part["weights"].nan_to_num(7), torch.tensor([[1.0, 7]])) for part in found
    )
    assert loaded["d"] == (2,) and loaded["n"] == {"n": 2} and loaded["x"]["b"][0][1].sum() == 2


@pytest.mark.parametrize(
    "value",
    [
        OrderedDict,
        torch.FloatStorage,
        torch.zeros(1).untyped_storage(),
        torch._utils._rebuild_tensor,
    ],
    ids=["a class", "a storage class", "a storage", "a function"],
)
def test_other_objects_are_refused(tmp_path, value):
    atomic.save(tmp_path / "a.pth", {"x": [value]})
    with pytest.raises(
        InputError, match="a.pth holds more than tensors and plain values: "
    ) as error:
        atomic.load(tmp_path / "a.pth")
    assert "\n" not in str(error.value)


def test_negated_views_and_shared_memory_keep_their_values(tmp_path):
    whole = torch.arange(6.0)
    value = {"a": torch._neg_view(whole), "b": whole[::2], "c": whole}
    atomic.save(tmp_path / "a.pth", value)
    loaded = atomic.load(tmp_path / "a.pth")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in value.items())
    assert not loaded["a"].is_neg() and loaded["b"].data_ptr() == loaded["c"].data_ptr()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_in_a_pickle_is_refused_unrun(tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    if how == "torch":
        torch.save(Evil(), "evil.pth")
    else:
        with open("evil.pth", "wb") as file:
            pickle.dump(Evil(), file, 2)
    with pytest.raises(InputError, match="evil.pth holds more than tensors.*mkdir") as error:
        atomic.load("evil.pth")
    assert "weights_only" not in str(error.value)  # no advice to run it after all
    assert not os.path.exists("owned")


@pytest.mark.parametrize("length", [0, 1, 100, 600])
def test_a_truncated_file_is_named(tmp_path, length):
    path = tmp_path / "a.pth"
    atomic.save(path, torch.arange(100))
    os.truncate(path, length)
    with pytest.raises(InputError, match="a.pth") as error:
        atomic.load(path)
    assert "\n" not in str(error.value)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="File not found: .*none.pth"):
        atomic.load(tmp_path / "none.pth")
    with pytest.raises(InputError, match="cannot read"):
        atomic.load(tmp_path)
