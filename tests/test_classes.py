"""Classes by their names: which output of a net, which images."""

import types

import numpy as np
import pytest
from torch import nn

from evaluation import classes
from runtime.errors import InputError

DATA = ["cat", "dog", "fox"]


def net(count, names=None):
    model = nn.Module()
    model.fc, model.classes = nn.Linear(2, count), names
    return model


def data(labels, name="targets"):
    return types.SimpleNamespace(**{name: np.array(labels)})


def test_outputs(capsys):
    assert classes.outputs("a", net(3), DATA) == DATA  # it does not say: as the data counts them
    assert classes.outputs("a", net(4, ["owl", "fox", "dog", "cat"]), DATA)[1] == "fox"
    assert classes.outputs("a", net(4, DATA), DATA) == [*DATA, None]  # -nClasses 4
    assert capsys.readouterr().out == ""
    assert classes.outputs("a", net(3, ["tabby", "hound", "reynard"]), DATA) == DATA
    assert capsys.readouterr().err.startswith("=> a has other class names")
    for names in (None, ["a", "b", "c", "d"]):
        with pytest.raises(InputError, match="b.t7 has 4 classes, not those of the data .3, cat"):
            classes.outputs("b.t7", net(4, names), DATA)


def test_columns():
    names = ["owl", "fox", "dog", "cat"]
    assert classes.columns("a", names, names).tolist() == [0, 1, 2, 3]
    assert classes.columns("a", names, DATA).tolist() == [3, 2, 1]
    assert classes.columns("a", [*DATA, None], [*DATA, None]).tolist() == [0, 1, 2, 3]
    with pytest.raises(InputError, match="1 classes are not among those of a: the first is emu"):
        classes.columns("a", names, ["owl", "emu"])
    with pytest.raises(
        InputError, match="1 classes in list.txt are unknown to a: the first is emu"
    ):
        classes.columns("a", names, ["emu"], "list.txt")


@pytest.mark.parametrize("name", ["targets", "labels"])
def test_targets(name, capsys):
    images = data([0, 0, 1, 2, 2], name)
    indices, targets = classes.targets(images, DATA, ["owl", "fox", "dog", "cat"])
    assert indices.tolist() == [0, 1, 2, 3, 4] and targets.tolist() == [3, 3, 2, 1, 1]
    with pytest.raises(InputError, match="has images of dog, a class that the model does not know"):
        classes.targets(images, DATA, ["cat", "fox"])
    indices, targets = classes.targets(images, DATA, ["fox", "cat"], "list.txt")
    assert indices.tolist() == [0, 1, 3, 4] and targets.tolist() == [1, 1, 0, 0]
    assert "1 of 5 images are of classes not in list.txt: left out" in capsys.readouterr().err
    with pytest.raises(InputError, match="no image is of a class in list.txt; the first is of cat"):
        classes.targets(images, DATA, ["owl"], "list.txt")


def test_a_dataset_that_keeps_its_labels_to_itself():
    images = types.SimpleNamespace(size=lambda: 3, get=lambda i: (None, [2, 0, 2][i]))
    assert classes.targets(images, DATA, DATA)[1].tolist() == [2, 0, 2]


@pytest.mark.parametrize(
    "text, message",
    [("", "is empty"), ("\n \n", "is empty"), ("cat\ndog\ncat\n", "names cat twice")],
)
def test_lists_that_are_refused(tmp_path, text, message):
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as stop:
        classes.read(path)
    assert str(path) in str(stop.value)
    path.write_bytes(b"cat\xff\n")
    with pytest.raises(InputError, match="not text in UTF-8"):
        classes.read(path)


def test_lists(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("red fox\r\n\n Hündin \n", encoding="utf-8")
    assert classes.read(path) == ["red fox", "Hündin"]
    path.write_text("cat\ndog\n", encoding="utf-8-sig")  # as Windows' Notepad saves it
    assert classes.read(path) == ["cat", "dog"]
    many = [f"n{k:08d}" for k in range(100_000)]  # ImageNet has 21,841
    path.write_text("\n".join(many))
    assert classes.read(path) == many
