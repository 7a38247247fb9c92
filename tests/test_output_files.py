"""What a command writes: refused before the work if it cannot be, or if it is what is read."""

import os

import numpy as np
import pytest
import torch
from support.detectors import write_coco

import convert
import detect
import evaluate
import plot
from pretrained import classify, extract_features
from runtime import regular_files
from runtime.errors import InputError
from storage import atomic

LONG = "é" * 125 + "x"  # 251 bytes


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a photo, a list of classes, a model, a log and data, none of which is read."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        (tmp_path / "data" / split / "a").mkdir(parents=True)
    names = "photo.png c.csv net.pth log.png run/log.jsonl run/model_best.pth data/val/a/1.png"
    for name in f"{names} features.t7 features.npz net.onnx".split():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"precious")
    write_coco(tmp_path / "coco", "val2017", 1)
    (tmp_path / "own.json").write_bytes(b"precious")
    return tmp_path


COMMANDS = [
    (detect.parse, "net.pth -show photo.png", "-out", "photo.png"),
    (detect.parse, "photo.png -show c.csv", "-out", "photo.png"),  # the detector itself
    (detect.parse, "-retrain net.pth -testOnly true -data . -val own.json", "-out", "own.json"),
    (
        *(detect.parse, "-retrain net.pth -testOnly true -data coco", "-out"),
        "coco/annotations/instances_val2017.json",
    ),
    (evaluate.parse, "net.pth -data data -classes c.csv", "-predictions", "c.csv"),
    (evaluate.parse, "net.pth -data data -classes c.csv", "-classErrors", "c.csv"),
    (evaluate.parse, "c.csv -data data", "-confusion", "c.csv"),
    (evaluate.parse, "photo.png net.pth -data data", "-confusion", "photo.png"),
    (evaluate.parse, "net.pth -data data", "-confusion", "data/val/a/1.png"),
    (plot.parse, "log.png", "-out", "log.png"),
    (convert.parse, "net.pth", "", "net.pth"),
    (convert.parse, "run", "", "run/model_best.pth"),
    (convert.parse, "net.onnx", "", "net.onnx"),
    (classify.main, "net.pth photo.png c.csv", "-csv", "c.csv"),
    (classify.main, "c.csv photo.png", "-csv", "c.csv"),
]


@pytest.mark.parametrize("way", ["same", "relative", "absolute", "symlink", "hard link"])
@pytest.mark.parametrize("command, words, option, path", COMMANDS)
def test_what_is_read_is_not_overwritten(here, capsys, command, words, option, path, way):
    ending = os.path.splitext(path)[1]
    out = {"relative": f"data/../{path}", "absolute": str(here / path)}.get(way, path)
    if "link" in way:
        out = f"link{ending}"
        (os.symlink if way == "symlink" else os.link)(path, out)
    if way == "hard link" and path.startswith("data"):
        return  # images are known by their folder
    before = (here / path).read_bytes()
    with pytest.raises((SystemExit, InputError)) as stop:
        command([*words.split(), *([option] if option else []), out])
    text = str(stop.value) + capsys.readouterr().err
    assert f"{out} would overwrite the input" in text
    assert (here / path).read_bytes() == before and os.path.lexists(out)


@pytest.mark.parametrize(
    "words", ["features.npz photo.png", "net.pth features.npz", "features.t7 photo.png -t7"]
)
def test_features_do_not_replace_what_is_read(here, words):
    with pytest.raises(InputError, match="^features.* would overwrite the input"):
        extract_features.main(words.split())


@pytest.mark.parametrize("command, words, option, path", COMMANDS)
def test_no_command_takes_what_cannot_be_written(here, capsys, command, words, option, path):
    ending, taken = os.path.splitext(path)[1], [option] if option else []
    os.mkfifo(f"pipe{ending}")
    os.mkdir(f"folder{ending}")
    os.symlink("/dev/zero", f"device{ending}")
    wrong = {
        **{"pipe": "is a pipe", "folder": "is a folder", "device": "is a device"},
        **{"no/x": "the folder 'no' does not exist", "photo.png/x": "does not exist"},
        **{f"{'n' * 252}": "File name too long", "/proc/x": "cannot be written"},
    }
    for name, words_of_it in wrong.items():
        with pytest.raises((SystemExit, InputError)) as stop:
            command([*words.split(), *taken, name + ending])
        assert words_of_it in str(stop.value) + capsys.readouterr().err
    assert not atomic.left_over(here)


@pytest.mark.parametrize("out", ["", "x.png", LONG, "curves.png"])
def test_a_picture_is_drawn_whole(here, out):
    """Over what lies there already, too."""
    (here / "run/log.jsonl").write_text(
        '{"options": {"netType": "resnet", "depth": 20}}\n'
        '{"epoch": 1, "train": [9, 9, 9], "test": [9, 9]}\n'
    )
    name = {"": "curves.png", LONG: f"{LONG}.svg"}.get(out, out)
    (here / name).write_bytes(b"an older picture")
    plot.main(["run", *(["-out", name] if out else [])])
    assert len((here / name).read_bytes()) > 5000 and not atomic.left_over(here)


@pytest.mark.parametrize("length", [200, 246, 247, 251, 255])
def test_names_of_any_length(here, length):
    name = "n" * (length - 4) + ".pth"
    regular_files.check_outputs([("OUT", name, (".pth",))])
    atomic.save(name, {"a": torch.ones(2)})
    assert atomic.load(name)["a"].sum() == 2 and name in os.listdir()
    assert not atomic.left_over(here)


def check(path, *inputs):
    regular_files.check_outputs([("-out", str(path), (".csv",))], inputs)


def test_files_that_are_protected(here, monkeypatch):
    check("c.csv")  # to write a file again is no fault
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != "c.csv" and access(path, mode))
    with pytest.raises(InputError, match="c.csv exists already and is write-protected"):
        check("c.csv")


def test_what_is_no_fault(here):
    np.savetxt("data/val/a/list.csv", [1])
    check("data/val/a/list.csv", "data/val")  # no image, so not read
    check("new.csv", "missing", "net.pth", "torchvision:resnet18", "data")
    os.symlink("nowhere.csv", "dangling.csv")
    check("dangling.csv")
    assert (here / "c.csv").read_bytes() == b"precious" and not (here / "new.csv").exists()
