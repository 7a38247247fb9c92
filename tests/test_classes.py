"""Classes by their names: which output of a net, which images."""

import types

import numpy as np
import pytest
import torch
from torch import nn

import models
import opts
from datasets import class_names
from evaluation import classes
from models.resnet import resnet
from runtime import options
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
    assert capsys.readouterr().err.startswith("=> the class names of a are not those of the data")
    for names in (None, ["a", "b", "c", "d"]):
        with pytest.raises(InputError, match="b.t7 has 4 classes, but the data has 3 others .cat"):
            classes.outputs("b.t7", net(4, names), DATA)


# index: the wnid, and the English name, of classes of ImageNet
IMAGENET = {
    **{0: ("n01440764", "tench"), 281: ("n02123045", "tabby"), 285: ("n02124075", "Egyptian cat")},
    **{482: ("n02979186", "cassette player"), 569: ("n03417042", "garbage truck")},
    **{701: ("n03888257", "parachute"), 999: ("n15075141", "toilet tissue")},
}
UNSORTED = [IMAGENET[k][0] for k in (701, 0, 569)]


def test_wnids():
    wnids, names = class_names.wnids(), class_names.english()
    assert len(set(wnids)) == len(names) == 1000 and wnids == sorted(wnids)
    assert all(wnid[0] == "n" and len(wnid) == 9 and wnid[1:].isdecimal() for wnid in wnids)
    assert {k: (wnids[k], names[k]) for k in IMAGENET} == IMAGENET


@pytest.mark.parametrize("names", [None, "english", "wnids"])
def test_an_imagenet_net_on_some_of_its_classes(names, capsys):
    names = names and getattr(class_names, names)()
    found = classes.outputs("a", net(1000, names), UNSORTED)
    assert classes.columns("a", found, UNSORTED, "list").tolist() == [701, 0, 569]
    line = "=> a has 1000 outputs without names: assuming ImageNet's classes"
    assert capsys.readouterr().err.splitlines() == [line] * (names is None)
    # all classes in order, as the data count them
    assert classes.outputs("a", net(1000, names), class_names.wnids()) == class_names.wnids()
    assert capsys.readouterr().err == ""


def test_other_nets_are_not_taken_for_imagenets():
    others = [f"class {k}" for k in range(1000)]
    for count, names, data in (
        (1000, None, [*UNSORTED, "fox"]),
        (1000, others, UNSORTED),
        (999, None, UNSORTED),
        (1000, None, DATA),
    ):
        with pytest.raises(InputError, match=f"a has {count} classes, but the data has"):
            classes.outputs("a", net(count, names), data)


NUMBERS = [("0 1 10 11 2", True), ("1 10 2 a", False), ("00 01 10", False), ("7 8 9", False)]


@pytest.mark.parametrize("names, unclear", NUMBERS)
def test_numbers_in_the_order_of_text(names, unclear, capsys):
    names = names.split()
    line = "sorted as text (0, 1, 10, 11, ...); if those of a were sorted as numbers (0, 1, 2"
    for theirs in (None, [f"colour {k}" for k in names]):
        classes.outputs("a", net(len(names), theirs), names)
        assert (line in capsys.readouterr().err) == unclear
    classes.outputs("a", net(len(names), names), names)  # they match by name
    assert capsys.readouterr().err == ""


def places_in_main(names, data, words="", outputs=5):
    """A net in main.py's test, and the places of its outputs in the file."""
    model = resnet(8, outputs, "cifar")
    model.classes, bias = names, torch.arange(outputs, dtype=torch.float32)
    model.fc.bias.data, model.fc.weight.data[:, 0] = bias, bias
    words = f"-dataset cifar10 -netType resnet -retrain a -testOnly true {words}"
    opt = opts.settle(options.read_words(words.split(), opts.OPTIONS, []))
    model = models.setup(opt, model, None, data, torch.device("cpu"))
    assert torch.equal(model.fc.weight[:, 0], model.fc.bias)
    return model.fc.bias.tolist()


@pytest.mark.parametrize("words", ["", "-nClasses 5"])
@pytest.mark.parametrize(
    "data, places",
    [
        ("a b c d e", [0, 1, 2, 3, 4]),
        ("e d c b a", [4, 3, 2, 1, 0]),
        ("b d", [1, 3, 0, 2, 4]),
        ("d b", [3, 1, 0, 2, 4]),
    ],
)
def test_main_tests_by_names(data, places, words):
    assert places_in_main("a b c d e".split(), data.split(), words) == places


def test_main_tests_an_imagenet_net_on_some_of_its_classes(capsys):
    for names in (None, class_names.english()):
        for words in ("", "-nClasses 1000"):
            places = places_in_main(names, UNSORTED, words, 1000)
            assert places[:3] == [701, 0, 569] and sorted(places) == list(range(1000))
    assert "has no class names" not in capsys.readouterr().err


def test_main_does_not_guess_classes(capsys):
    with pytest.raises(InputError, match="the model has 5 classes, but the data has 3") as error:
        places_in_main(None, DATA)
    assert "-nClasses" not in str(error.value)  # which would take other classes for these
    places_in_main(None, DATA, "-nClasses 5")
    assert (
        "=> a has no class names, so its first 3 outputs count as the classes of the data"
        in capsys.readouterr().err
    )
    places_in_main(None, ["0", "1", "10", "11", "2"])
    assert "give -classOrder number" in capsys.readouterr().err


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
    note = "1 of 5 images are left out, because their classes are not in list.txt"
    assert note in capsys.readouterr().err
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
        classes.read_names(path)
    assert str(path) in str(stop.value)
    path.write_bytes(b"cat\xff\n")
    with pytest.raises(InputError, match="not text in UTF-8"):
        classes.read_names(path)


def test_lists(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("red fox\r\n\n Hündin \n", encoding="utf-8")
    assert classes.read_names(path) == ["red fox", "Hündin"]
    path.write_text("cat\ndog\n", encoding="utf-8-sig")  # as Windows' Notepad saves it
    assert classes.read_names(path) == ["cat", "dog"]
    many = [f"n{k:08d}" for k in range(100_000)]  # ImageNet has 21,841
    path.write_text("\n".join(many))
    assert classes.read_names(path) == many


def test_the_classes_of_a_folder(tmp_path):
    for name in ("b", "a", ".hidden", "__MACOSX"):
        (tmp_path / "train" / name).mkdir(parents=True)
    assert classes.read_names(str(tmp_path / "train")) == ["a", "b"]
    with pytest.raises(InputError, match="a has no class folders: give a train/, or a list"):
        classes.read_names(str(tmp_path / "train" / "a"))


@pytest.mark.parametrize(
    "text",
    [
        '["cat", "dog"]',
        '{"0": ["n01", "cat"]}',
        "0,cat\n1,dog",
        "- cat\n- dog",
        "0: cat",
        "n01 cat",
    ],
)
def test_a_list_in_another_form_is_led_on(text, tmp_path):
    path = tmp_path / "list"
    path.write_text(text)
    with pytest.raises(InputError, match="one of the model's names, such as cat") as caught:
        classes.columns("a.pth", ["cat", "dog"], classes.read_names(str(path)), str(path))
    assert text.split("\n")[0] in str(caught.value)
