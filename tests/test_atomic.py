"""Files are whole or absent, and never run code."""

import os
import pickle

import pytest
import torch

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
