"""evaluate.py's -predictions, -classErrors and -confusion against one image at a time, float64."""

import csv
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.evaluations import pair, pictures
from support.runs import ROOT
from torch import nn

import evaluate
import main
import models
import plot
from datasets.input_spec import InputTransform
from evaluation import predictions
from formats import model_files

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder; the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(path):
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


def run(path, data, *words):
    more = ["-batchSize", "3", "-nThreads", "0", "-precision", "double"]
    return evaluate.main([path, "-data", str(data), *more, *words])


def outputs(net, photos):
    """The outputs of each validation picture in order, float64 (8, K)."""
    inputs = [InputTransform(net.input_spec)(pixels) for pixels, _ in pictures(photos)]
    with torch.no_grad():
        return torch.cat([net(input[None].double()) for input in inputs]).numpy()


def softmax(scores):
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_each_image_one_by_one(photos, here):
    """Four classes, two of which have images; one row an image, in the dataset's order."""
    net = pair(here, photos)["other"][1]
    names = ["striped", "fox", "plain", "cat"]
    with torch.no_grad():
        net.fc.bias[[0, 2]] += 3  # else all are taken for foxes and cats
    model_files.write("net.pth", models.pack(net))
    files = ["-predictions", "p.csv", "-classErrors", "e.csv", "-confusion", "m.csv,m.png,m.SVG"]
    [(top1, _)] = run("net.pth", photos, *files)
    head, *rows = table("p.csv")
    assert head[:4] == ["path", "class", "class1", "probability1"] and len(head) == 2 + 2 * 4
    expected = softmax(outputs(net, photos))
    order = np.argsort(-expected, 1)
    truth = [name for name in ("plain", "striped") for _ in range(4)]
    paths = [f"{photos}/val/{name}/{i % 4}.jpg" for i, name in enumerate(truth)]
    assert [row[:2] for row in rows] == [list(pair) for pair in zip(paths, truth)]
    for row, best, p in zip(rows, order, expected):
        assert row[2::2] == [names[i] for i in best]
        # the program sums in another order, and prints six digits
        np.testing.assert_allclose(np.array(row[3::2], float), p[best], rtol=2e-5)
    taken = [names[i] for i in order[:, 0]]
    head, *rows = table("m.csv")
    assert head[1:] == names and [row[0] for row in rows] == names
    for row in rows:
        own = [t for t, true in zip(taken, truth) if true == row[0]]
        assert row[1:] == [str(own.count(name)) for name in names]
    wrong = [sum(t != true for t, true in zip(taken, truth) if true == name) for name in names]
    head, *rows = table("e.csv")
    assert head == ["class", "images", "wrong1", "wrong5", "top1", "top5"]
    images = {"plain": 4, "striped": 4}
    for row, name, count in zip(rows, names, wrong):
        errors = [f"{25 * count:.3f}", "0.000"] if name in images else ["", ""]
        assert row == [name, str(images.get(name, 0)), str(count), "0", *errors]
    assert 0 < sum(wrong) < 8 and top1 == 100 * sum(wrong) / 8
    assert (here / "m.png").read_bytes().startswith(PNG)
    assert "<svg" in (here / "m.SVG").read_text()
    assert not [name for name in os.listdir() if name.endswith(".tmp")]


def test_several_outputs_are_ranked_by_the_mean_of_softmax(photos, here):
    (one, net), (other, second) = pair(here, photos).values()
    (here / "two").write_text("plain\nstriped\n")
    run(one, photos, other, "-classes", "two", "-predictions", "p.csv")
    first = softmax(outputs(net, photos))
    second = softmax(outputs(second, photos)[:, [2, 0]])
    mean = (first + second) / 2
    for row, p in zip(table("p.csv")[1:], mean):
        order = np.argsort(-p)
        assert row[2::2] == [("plain", "striped")[i] for i in order]
        np.testing.assert_allclose(np.array(row[3::2], float), p[order], rtol=2e-5)


@pytest.mark.slow
def test_any_number_of_processes_and_odd_names(photos, here):
    """The same bytes from one and from two processes; paths and classes of any bytes."""
    shutil.copytree(photos, "photos")
    odd, other = 'a,"b\n$\xe9', os.fsdecode(b"s\xff")
    for split in ("train", "val"):
        os.rename(f"photos/{split}/plain", f"photos/{split}/{odd}")
        os.rename(f"photos/{split}/striped", f"photos/{split}/{other}")
    name = b"\xe9\xff, 1.jpg"
    os.rename(b"photos/val/s\xff/1.jpg", b"photos/val/s\xff/" + name)
    with open(f"photos/val/{other}/0.jpg", "wb") as file:
        file.write(b"no picture")
    (path, _), _ = pair(here, photos).values()
    words = [path, "-data", "photos", "-precision", "double", "-skipCorrupt", "true"]
    written = []
    for count in ("1", "2"):
        files = ["-predictions", "p.csv", "-classErrors", "e.csv", "-confusion", "m.csv,m.png"]
        command = [sys.executable, os.path.join(ROOT, "evaluate.py"), *words, *files]
        command += ["-nProcs", count, "-batchSize", "7", "-nThreads", "1"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
        assert done.returncode == 0, done.stderr
        wrong1 = int(re.search(r"\((\d+) and \d+ of 7 images wrong", done.stdout)[1])
        written.append([(here / file).read_bytes() for file in ("p.csv", "e.csv", "m.csv")])
    assert written[0] == written[1]
    # the class names differ from those of the data: outputs are matched by order
    rows = table("p.csv")[1:]
    files = [f"{odd}/{i}.jpg" for i in range(4)]
    files += [f"{other}/{file}" for file in ("2.jpg", "3.jpg", os.fsdecode(name))]
    assert [row[0] for row in rows] == [f"photos/val/{file}" for file in files]
    assert sum(row[1] != row[2] for row in rows) == wrong1
    assert {row[1] for row in rows} == {odd, other}
    assert b"photos/val/s\xff/\xe9\xff, 1.jpg" in written[0][0]


def test_images_that_have_no_file_and_classes_without_a_name(cifar, here):
    words = "-dataset cifar10 -depth 8 -netType resnet -nEpochs 1 -nClasses 12 -nThreads 0"
    main.main([*words.split(), "-data", cifar])
    evaluate.main(
        ["checkpoints", "-dataset", "cifar10", "-data", cifar, "-predictions", "p.csv"]
        + ["-confusion", "m.csv"]
    )
    rows = table("p.csv")[1:]
    assert [row[0] for row in rows] == [f"image {i}" for i in range(21)]
    assert all(len(row) == 12 for row in rows)
    assert table("m.csv")[0][-2:] == ["class 10", "class 11"]


def test_outputs_that_are_not_numbers(photos, here):
    """Counted as wrong, without a prediction. The weights are finite: infinity less infinity."""
    net = pair(here, photos)["one"][1]
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        norms[-1].bias.fill_(1e200)  # so are the features
        net.fc.weight[:, ::2], net.fc.weight[:, 1::2] = 1e200, -1e200
    model_files.write("nan.pth", models.pack(net))
    run("nan.pth", photos, "-predictions", "p.csv", "-classErrors", "e.csv", "-confusion", "m.csv")
    assert all(row[2:] == [""] * 4 for row in table("p.csv")[1:])
    assert [row[1:3] for row in table("e.csv")[1:]] == [["4", "4"]] * 2
    assert [row[1:] for row in table("m.csv")[1:]] == [["0", "0"]] * 2


@pytest.mark.parametrize(
    "words, error",
    [
        ("-predictions p.txt", "-predictions p.txt should end in .csv"),
        ("-classErrors e.png", "-classErrors e.png should end in .csv"),
        ("-confusion m.jpg", "-confusion m.jpg should end in .csv or .png or .svg"),
        ("-confusion m.csv,", "-confusion  should end in .csv or .png or .svg"),
        ("-predictions no/p.csv", "the folder 'no' does not exist: make this folder"),
        ("-predictions d.csv", "-predictions d.csv is a folder"),
        ("-predictions x.csv -confusion ./x.csv", "would be written twice"),
        ("-predictions x.csv -classErrors X.csv", "would be written twice"),
    ],
)
def test_refused_before_the_test_begins(photos, here, capsys, words, error):
    (here / "net.pth").write_bytes(b"never read")
    os.mkdir("d.csv")
    with pytest.raises(SystemExit) as stop:
        run("net.pth", photos, *words.split())
    out, text = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert text.startswith("evaluate.py: ") and error in text and text.count("\n") == 1


@pytest.mark.parametrize("module", ["matplotlib", "matplotlib.figure"])
@pytest.mark.parametrize(
    "error, words",
    [
        (None, "which is not installed: pip install matplotlib"),
        (ImportError("libpng.so: not found\nmore"), "which fails here: libpng.so: not found\n"),
        (ValueError("backend: no such"), "which fails here: backend: no such\n"),
        (AttributeError(), "which fails here: AttributeError\n"),
    ],
)
@pytest.mark.parametrize("program", ["evaluate.py", "plot.py"])
def test_pictures_need_matplotlib(here, capsys, monkeypatch, module, error, words, program):
    """That it draws is known before the test, which may take hours."""
    monkeypatch.setitem(sys.modules, module, None)
    if error:
        monkeypatch.delitem(sys.modules, module)
        monkeypatch.setattr(sys, "meta_path", [Broken(module, error), *sys.meta_path])
    (here / "net.pth").write_bytes(b"never read")
    command = {
        "evaluate.py": (evaluate, "net.pth -dataset digits -confusion m.csv,m.png"),
        "plot.py": (plot, "net.pth -out m.png"),
    }
    script, line = command[program]
    with pytest.raises(SystemExit):
        script.main(line.split())
    text = capsys.readouterr().err
    assert text.startswith(f"{program}: ") and f"m.png needs matplotlib, {words}" in text
    assert text.count("\n") == 1 and os.listdir() == ["net.pth"]


class Broken:
    """An importer that cannot import one module."""

    def __init__(self, module, error):
        self.module, self.error = module, error

    def find_spec(self, name, *_):
        if name == self.module:
            raise self.error


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the memory is read in /proc")
def test_memory_does_not_grow_with_images_times_classes():
    """Kept outputs, or small tensors between the batches' large ones, take 3 MB a batch."""
    count, classes, batches = 8, 20_000, 30
    found = predictions.Predictions(count * batches, classes, torch.device("cpu"))
    used = []
    for i in range(batches):
        indices = torch.arange(i * count, (i + 1) * count)
        found.add(indices, torch.randn(2, count, classes), False)
        with open("/proc/self/statm") as file:
            used.append(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    assert used[-1] - used[3] < 20e6


@pytest.mark.parametrize("drawn, cells", [(9, 7), (4, 4), (3, 3)])
def test_a_picture_has_no_more_cells_than_pixels(monkeypatch, tmp_path, drawn, cells):
    """With more classes, the counts of those that follow one another are summed."""
    targets, predicted = np.arange(70) % 7, np.arange(70) * 3 % 7
    shown = []
    monkeypatch.setattr(predictions, "DRAWN", drawn)
    imshow = "matplotlib.axes.Axes.imshow"
    monkeypatch.setattr(imshow, lambda self, *what, **how: shown.extend([*what, how]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predictions.write_confusion(str(tmp_path / "m.png"), targets, predicted, list("abcdefg"))
    each = -(-7 // drawn)
    expected = np.zeros((cells, cells))
    for i, j in zip(targets, predicted):
        expected[i // each, j // each] += 1
    np.testing.assert_allclose(shown[0], 100 * expected / expected.sum(1, keepdims=True))
    ends = shown[1]["extent"]  # a class keeps its number on the axes
    assert ends == (-0.5, cells * each - 0.5, cells * each - 0.5, -0.5) and ends[1] >= 6.5
