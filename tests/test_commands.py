"""The commands in README.md, TRAINING.md and docs/ parse, and their nets are as large as said."""

import functools
import os
import re
import subprocess
import sys

import pytest
import torch

import complexity
import convert
import detect
import evaluate
import models
import opts
import plot
from models.resnext import resnext

# weights of the nets of the paper and of pycls' model zoo (with 10 or 1000 classes)
SIZES = {
    ("cifar10", "resnext", 29, 8, 64, "B"): 34_426_698,
    ("cifar10", "resnext", 29, 16, 64, "B"): 68_155_210,
    ("imagenet", "resnext", 50, 32, 4, "B"): 25_028_904,
    ("imagenet", "resnext", 101, 32, 4, "B"): 44_177_704,
    ("imagenet", "resnext", 101, 64, 4, "B"): 83_455_272,
    ("imagenet", "resnet", 50, 1, 64, "B"): 25_557_032,
    ("imagenet", "resnet", 101, 1, 64, "B"): 44_549_160,
}

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PAGES = ("README.md", "TRAINING.md", "pretrained/README.md")


SCRIPTS = (
    *("main", "evaluate", "convert", "detect", "plot", "complexity"),
    *("pretrained/classify", "pretrained/extract_features", "datasets/prepare_imagenet"),
)


def read(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read().replace("$seed", "1").replace("$k", "1")  # in loops over seeds, folds


def documents():
    """The files whose commands are tested."""
    pages = sorted(name for name in os.listdir(os.path.join(ROOT, "docs")) if name.endswith(".md"))
    pages.remove("changing.md")  # its commands need its changes: test_changing.py
    return [*PAGES, *(f"docs/{name}" for name in pages)]


def commands(script):
    """The options of every command of a script in the documents, each once, in order."""
    # all but main.py and complexity.py take names of files as well
    word = r"-\w+ [^\s`|]+" if script in ("main", "complexity") else r"[^\s`|#]+"
    pattern = rf"python {script}\.py((?: {word})*)"
    found = [words for name in documents() for words in re.findall(pattern, read(name))]
    return list(dict.fromkeys(found))


@functools.cache
def measured(dataset, *config):
    """(parameters, multiply-adds) of a net with the documents' number of classes."""
    *words, classes = config
    opt = opts.parse(["-dataset", dataset, *words, "-nClasses", classes], data=False)
    net, _ = complexity.build(opt)
    return complexity.total(complexity.stages(net, complexity.layers(net, complexity.side(opt))))[
        :2
    ]


MODEL = ("netType", "bottleneckType", "depth", "cardinality", "baseWidth", "shortcutType")


def size(command):
    opt = opts.parse(command.split(), data=False)
    classes = opt.nClasses or {"imagenet": 1000, "cifar100": 100}.get(opt.dataset, 10)
    words = [word for name in MODEL for word in (f"-{name}", str(getattr(opt, name)))]
    parameters, multiply_adds = measured(opt.dataset, *words, str(classes))
    key = (opt.dataset, opt.netType, opt.depth, opt.cardinality, opt.baseWidth, opt.shortcutType)
    assert parameters == SIZES.get(key, parameters) or opt.nClasses
    return parameters, multiply_adds


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A folder with all that the commands name."""
    for place in ("imagenet", "imagenet5k", "photos", "IMAGENET"):
        for split in ("train", "val"):
            (tmp_path / place / split).mkdir(parents=True)
    for data in ("coco", "boxes"):
        (tmp_path / data).mkdir()
    for run in ("checkpoints", "finetuned", "detector", "digits20", "folds/1"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "model_best.pth").touch()
    for name in ("resnext_50_32x4d", "resnext_101_32x4d", "resnext_101_64x4d"):
        (tmp_path / f"{name}.t7").touch()
    for name in ("resnet-200.t7", "resnet-101.t7", "resnet-50.t7", "1000.txt", "photo.jpg"):
        (tmp_path / name).touch()
    for name in ("train.csv", "val.csv"):
        (tmp_path / name).touch()
    (tmp_path / "pretrained").symlink_to(os.path.join(ROOT, "pretrained"))
    monkeypatch.chdir(tmp_path)


def test_there_are_commands():
    assert len(commands("main")) > 50 and len(commands("complexity")) >= 2
    assert len(commands("evaluate")) >= 5 and len(commands("detect")) >= 8
    assert len(commands("plot")) >= 4 and len(commands("convert")) >= 1


def marked(value, name=None):
    """A command or a row as a parameter. A net of 1202 layers takes 10 s to count."""
    return pytest.param(value, marks=pytest.mark.slow if "1202" in str(value) else (), id=name)


@pytest.mark.parametrize("command", [marked(command) for command in commands("main") if command])
def test_main(command, folder):
    opt = opts.parse(command.split())
    if opt.retrain == "none" and opt.resume == "none":
        size(command)


@pytest.mark.parametrize("command", commands("complexity"))
def test_complexity(command, folder):
    if "-retrain" in command:  # test_detect_sizes.py measures a detector
        assert opts.parse(command.split(), data=False).retrain.endswith(".pth")
    else:
        size(command or "-depth 50")  # without options it is tested in test_complexity.py


@pytest.mark.parametrize("command", commands("evaluate"))
def test_evaluate(command, folder):
    assert evaluate.parse(command.split()).models


@pytest.mark.parametrize("command", commands("detect"))
def test_detect(command, folder):
    opt = detect.parse(command.split())
    assert opt.show or opt.resume != "none" or opt.iterations


@pytest.mark.parametrize("command", [words for words in commands("plot") if words])
def test_plot(command):
    assert plot.parse(command.split())


@pytest.mark.parametrize("command", commands("convert"))
def test_convert(command):
    words = command.replace(" IN OUT", " in.t7 out.pth")  # that stand for any
    assert convert.parse(words.split())


def tables():
    """{heading: cell} of every row of TRAINING.md that states the size of a net."""
    heads = None
    for line in read("TRAINING.md").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line[:1] == "|" else None
        if cells is None or heads is None:
            heads = cells
        elif "M" in heads and set(line) - set("|-"):
            yield dict(zip(heads, cells, strict=True))


@pytest.mark.parametrize("row", [marked(row, row["net"]) for row in tables()])
def test_a_net_is_as_large_as_training_md_says(row, folder):
    parameters, multiply_adds = size(row["command"].strip("`").removeprefix("python main.py "))
    assert f"{parameters / 1e6:.1f}" == row["M"]
    assert f"{multiply_adds / 1e9:.2f}" == row["G"]
    assert row["here"]  # a measurement, or that there is none


def test_every_row_of_the_papers_tables_is_a_command():
    text = read("TRAINING.md")
    for _, rows in complexity.TABLES:
        for name, options, *_ in rows:
            assert options in text, name


def test_the_papers_table_8():
    """Each row of TRAINING.md with the paper's AP50 and AP, from its table 8."""
    text = read("TRAINING.md")
    papers = {"ResNet-50": (47.6, 26.5), "ResNeXt-50 32x4d": (49.7, 27.5)}
    papers |= {"ResNet-101": (51.1, 29.8), "ResNeXt-101 32x4d": (51.9, 30.0)}
    for name, (ap50, ap) in papers.items():
        row = rf"^\| {name} \| {ap50} \| {ap} \| not .*`python detect\.py -data coco "
        assert re.search(row, text, re.M), name


def test_a_trained_net_is_a_backbone_of_torchvisions_detector(tmp_path, monkeypatch):
    from storage import atomic

    (code,) = re.findall(r"```python\n(.*?)```", read("TRAINING.md"), re.S)
    monkeypatch.chdir(tmp_path)
    os.mkdir("checkpoints")
    net = resnext(depth=50, cardinality=32, base_width=4)
    net.classes, net.input_spec = None, None
    atomic.save("checkpoints/model_best.pth", models.pack(net))
    names = {}
    exec(code, names)
    body = names["backbone"].body.eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(body(image)["3"], net.eval().maps(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_command_finds_its_modules(script, tmp_path):
    """By a link from another folder, and where Python leaves out the script's own (-I and -P)."""
    link = tmp_path / "link.py"
    link.symlink_to(os.path.join(ROOT, f"{script}.py"))
    done = subprocess.run(
        [sys.executable, "-I", link, "-help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "") and "Usage" in done.stdout
