"""evaluate.py's -scores and -temperature against one image at a time, by NumPy and SciPy."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from support.evaluations import pair
from support.runs import ROOT
from test_predictions import here, outputs, run, softmax, table  # noqa: F401  here is a fixture

from evaluation import logits
from runtime.errors import InputError


def beside(stem):
    """The rows' names and the columns' names of a .npy of scores."""
    with open(f"{stem}.classes.txt", encoding="utf-8", errors="surrogateescape") as file:
        return table(f"{stem}.images.csv")[1:], file.read().splitlines()


def test_every_image_and_class(photos, here):  # noqa: F811
    """In one file or the other; also of a few classes, in another order."""
    path, net = pair(here, photos)["other"]
    names = ["striped", "fox", "plain", "cat"]
    expected = outputs(net, photos)
    paths = [f"{photos}/val/{name}/{i}.jpg" for name in ("plain", "striped") for i in range(4)]
    run(path, photos, "-scores", "s.npy")
    found = np.load("s.npy", mmap_mode="r")
    assert found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    rows, columns = beside("s")
    assert columns == names and [row[0] for row in rows] == paths
    assert [row[1] for row in rows] == ["plain"] * 4 + ["striped"] * 4
    (here / "two").write_text("plain\nstriped\n")
    run(path, photos, "-classes", "two", "-scores", "t.csv")
    head, *rows = table("t.csv")
    assert head == ["path", "class", "plain", "striped"] and [row[0] for row in rows] == paths
    cells = np.array([row[2:] for row in rows], np.float32)
    np.testing.assert_allclose(cells, expected[:, [2, 0]], rtol=1e-5, atol=1e-6)
    assert {file for file in os.listdir() if file.startswith(("s.", "t"))} == {
        *("s.npy", "s.images.csv", "s.classes.txt", "t.csv", "two")
    }


def test_several_outputs_are_averaged(photos, here):  # noqa: F811
    (one, net), (other, second) = pair(here, photos).values()
    run(one, photos, other, "-scores", "s.npy")
    mean = (outputs(net, photos) + outputs(second, photos)[:, [2, 0]]) / 2
    np.testing.assert_allclose(np.load("s.npy"), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("file", ["s.npy", "s.csv"])
def test_an_image_that_cannot_be_read_is_nan(photos, here, monkeypatch, file):  # noqa: F811
    path, net = pair(here, photos)["one"]
    expected = outputs(net, photos)
    expected[5] = np.nan
    os.symlink(f"{photos}/train", "train")
    for name in ("plain", "striped"):
        os.makedirs(f"val/{name}")
        for i in range(4):
            os.symlink(f"{photos}/val/{name}/{i}.jpg", f"val/{name}/{i}.jpg")
    os.remove("val/striped/1.jpg")
    (here / "val/striped/1.jpg").write_bytes(b"no picture")
    run(path, here, "-scores", file, "-skipCorrupt", "true", "-temperature", "true")
    if file == "s.npy":
        found = np.load(file)
    else:
        found = np.array([row[2:] for row in table(file)[1:]], np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["s.npy", "s.csv"])
def test_any_number_of_processes(photos, here, file):  # noqa: F811
    path, _ = pair(here, photos)["one"]
    written = []
    for count in ("1", "3"):
        command = [sys.executable, os.path.join(ROOT, "evaluate.py"), path, "-data", photos]
        command += ["-scores", file, "-temperature", "true", "-nProcs", count, "-batchSize", "3"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        rows = np.load(file) if file == "s.npy" else [row[2:] for row in table(file)[1:]]
        written.append((np.array(rows, float), re.findall(r" \* Temp.*", done.stdout)))
    np.testing.assert_allclose(written[0][0], written[1][0], rtol=1e-4, atol=1e-4)
    assert [len(lines) for _, lines in written] == [1, 1]


def log_loss(scores, targets, temperature):
    return -np.log(softmax(scores / temperature)[np.arange(len(targets)), targets]).mean()


def calibration_error(scores, targets, temperature, bins=15):
    p = softmax(scores / temperature)
    confidence, right = p.max(1), p.argmax(1) == targets
    edges = np.linspace(0, 1, bins + 1)
    total = 0
    for low, high in zip(edges, edges[1:]):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("classes, scale", [(2, 0.2), (7, 3), (40, 30)])
def test_temperature_and_calibration(monkeypatch, classes, scale):
    """Nets that are too sure and too unsure; in pieces, of some of the rows in any order."""
    monkeypatch.setattr(logits, "_AT_ONCE", 37 * classes)
    random = np.random.default_rng(classes)
    truth = random.standard_normal((400, classes))
    targets = np.array([random.choice(classes, p=softmax(row)) for row in truth])
    array = (truth * scale).astype(np.float32)
    indices = random.permutation(400)[:300]
    scores, own = array[indices].astype(float), targets[indices]
    best = minimize_scalar(
        lambda t: log_loss(scores, own, np.exp(t)), bounds=np.log([0.01, 100]), method="bounded"
    )
    found = logits.fit(array, indices, own)
    assert log_loss(scores, own, found) <= best.fun + 1e-9
    np.testing.assert_allclose(found, np.exp(best.x), rtol=1e-4)
    for t in (1, found):
        error, loss = logits.measure(array, indices, own, t)
        np.testing.assert_allclose(error, calibration_error(scores, own, t), rtol=1e-6)
        np.testing.assert_allclose(loss, log_loss(scores, own, t), rtol=1e-9)


def test_no_temperature_without_numbers():
    none = np.array([], int)
    with pytest.raises(InputError, match="the outputs of every image have a NaN"):
        logits.calibrate(np.full((2, 3), np.nan, np.float32), none, none)


def test_the_line_of_temperature(photos, here, capsys):  # noqa: F811
    """Two classes of 4 images each; the bias makes the net wrong about some."""
    path, _ = pair(here, photos)["one"]
    run(path, photos, "-scores", "s.npy", "-temperature", "true")
    scores, targets = np.load("s.npy").astype(float), np.repeat([0, 1], 4)
    line = next(row for row in capsys.readouterr().out.splitlines() if "Temperature" in row)
    t, *values = map(float, re.findall(r"\d+\.\d+", line))
    expected = [
        f(scores, targets, temperature)
        for f in (lambda *words: 100 * calibration_error(*words), log_loss)
        for temperature in (1, t)
    ]
    np.testing.assert_allclose(values, expected, atol=0.006)
    assert line.endswith("(15 bins, 8 images)")


@pytest.mark.parametrize(
    "words, error",
    [
        ("-scores s.txt", "-scores s.txt should end in .npy or .csv"),
        ("-scores no/s.npy", "the folder 'no' does not exist"),
        ("-scores s.npy -predictions s.images.csv", "would be written twice"),
        ("-temperature true", "give -scores FILE.npy as well"),
        ("-scores s.npy -classes s.classes.txt", "would overwrite the input"),
    ],
)
def test_refused_before_the_test_begins(photos, here, capsys, words, error):  # noqa: F811
    (here / "net.pth").write_bytes(b"never read")
    (here / "s.classes.txt").write_text("plain\n")
    with pytest.raises(SystemExit):
        run("net.pth", photos, *words.split())
    out, text = capsys.readouterr()
    assert out == "" and error in text and text.count("\n") == 1


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    """The file of the first half stays as it was, and nothing temporary is left."""
    path = tmp_path / "s.npy"
    path.write_bytes(b"old")
    error = pytest.raises(InputError, match="cannot write .*s.npy: No space left")
    with error, logits.opened(str(path), (4, 3)) as scores:
        scores.write([0], np.ones((1, 3)))
        scores.name = "/dev/full"
        monkeypatch.setattr(logits.Logits, "array", lambda self: np.memmap(path, offset=1))
        scores.write([1], np.ones((1, 3)))
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["s.npy"]
