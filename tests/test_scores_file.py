"""evaluate.py's -scores against one image at a time."""

import os
import subprocess
import sys

import numpy as np
import pytest
from support.evaluations import pair
from support.runs import ROOT
from test_predictions import here, outputs, run, table  # noqa: F401  here is a fixture

from evaluation import predictions
from runtime.errors import InputError


def beside(stem):
    """The rows' names and the columns' names of a .npy of scores."""
    with open(f"{stem}.classes.txt", encoding="utf-8", errors="surrogateescape") as file:
        return table(f"{stem}.images.csv")[1:], file.read().splitlines()


def test_every_image_and_class(photos, here):  # noqa: F811
    """Also of a few classes, in another order."""
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
    run(path, photos, "-classes", "two", "-scores", "t.npy")
    rows, columns = beside("t")
    assert columns == ["plain", "striped"] and [row[0] for row in rows] == paths
    np.testing.assert_allclose(np.load("t.npy"), expected[:, [2, 0]], rtol=1e-5, atol=1e-6)
    files = [f"{stem}{end}" for stem in "st" for end in (".npy", ".images.csv", ".classes.txt")]
    assert {file for file in os.listdir() if file.startswith(("s.", "t."))} == {*files}


def test_several_outputs_are_averaged(photos, here):  # noqa: F811
    (one, net), (other, second) = pair(here, photos).values()
    run(one, photos, other, "-scores", "s.npy")
    mean = (outputs(net, photos) + outputs(second, photos)[:, [2, 0]]) / 2
    np.testing.assert_allclose(np.load("s.npy"), mean, rtol=1e-5, atol=1e-6)


def test_an_image_that_cannot_be_read_is_nan(photos, here):  # noqa: F811
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
    run(path, here, "-scores", "s.npy", "-skipCorrupt", "true")
    np.testing.assert_allclose(np.load("s.npy"), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_any_number_of_processes(photos, here):  # noqa: F811
    path, _ = pair(here, photos)["one"]
    written = []
    for count in ("1", "3"):
        command = [sys.executable, os.path.join(ROOT, "evaluate.py"), path, "-data", photos]
        command += ["-scores", "s.npy", "-nProcs", count, "-batchSize", "3"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        written.append(np.load("s.npy"))
    np.testing.assert_allclose(*written, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "words, error",
    [
        ("-scores s.txt", "-scores s.txt should end in .npy"),
        ("-scores no/s.npy", "the folder 'no' does not exist"),
        ("-scores s.npy -predictions s.images.csv", "would be written twice"),
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
    with error, predictions.opened(str(path), (4, 3)) as scores:
        scores.write([0], np.ones((1, 3)))
        scores.name = "/dev/full"
        monkeypatch.setattr(predictions.Logits, "array", lambda self: np.memmap(path, offset=1))
        scores.write([1], np.ones((1, 3)))
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["s.npy"]
