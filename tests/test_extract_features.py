"""The script that extracts features: both modes, both kinds of file, errors."""

import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

import models
from formats import t7
from models.resnet import resnet
from pretrained import extract_features, inference
from runtime.errors import InputError
from storage import atomic

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
INPUT = {"scale": 40, "crop": 32, "largest": 255, "mean": (120, 120, 120), "std": (60, 60, 60)}


@pytest.fixture
def net(tmp_path, monkeypatch):
    """The file of a random net; the current folder is an empty one."""
    torch.manual_seed(0)
    model = resnet(8, 3, "cifar")
    model.classes, model.input_spec = None, INPUT
    atomic.save(tmp_path / "net.pth", models.pack(model))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return str(tmp_path / "net.pth")


@pytest.fixture
def album(tmp_path):
    """A folder of seven pictures, made in another order than that of their names."""
    folder, random = tmp_path / "album", np.random.default_rng(1)
    folder.mkdir()
    for name in ("d.png", "a.jpg", "g.png", "c.gif", "B.png", "f", "e.png"):
        noise = random.integers(0, 256, (6, 7, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((60, 50)).save(folder / name, None if "." in name else "png")
    return folder


SORTED = ("B.png", "a.jpg", "c.gif", "d.png", "e.png", "f", "g.png")


def expected(net, paths):
    """What the classifier is given, caught on its way, for one image at a time."""
    model, caught = models.load(net), []
    model.fc.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        for path in paths:
            model(model.transform(path)[None])
    return torch.cat(caught).numpy()


def check(net, paths):
    """features.npz holds just these, in this order."""
    with np.load("features.npz", allow_pickle=False) as file:
        assert sorted(file.files) == ["features", "image_list"]
        features, names = file["features"], file["image_list"]
    assert names.dtype.kind == "U" and names.tolist() == [str(path) for path in paths]
    assert features.dtype == np.float32 and features.shape == (len(paths), 64)
    # sums in another order in batches of another size
    np.testing.assert_allclose(features, expected(net, paths), rtol=1e-4, atol=1e-6)
    assert np.ptp(features, axis=0).max() > 1e-3  # they do differ
    return features


def test_files(net, album, capsys):
    paths = [str(album / "g.png"), str(album / "a.jpg"), str(album / "g.png")]
    assert extract_features.main([net, *paths]) == 0
    assert capsys.readouterr() == ("saved features to features.npz\n", "")
    features = check(net, paths)
    assert np.array_equal(features[0], features[2])
    assert os.listdir() == ["features.npz"]


@pytest.mark.parametrize("size", [1, 3, 7, 50])  # the last batch is short with 3, with 50 the first
def test_a_directory(net, album, capsys, size):
    (album / ".hidden.png").write_bytes(b"no image")
    (album / "folder.png").mkdir()
    assert extract_features.main([net, str(size), str(album)]) == 0
    assert capsys.readouterr().err == ""
    check(net, [os.path.join(album, name) for name in SORTED])


@pytest.mark.parametrize("option", ["-t7", "--t7"])
def test_torch7_file(net, album, capsys, option):
    (album / "bad.png").write_bytes(b"no image")
    assert extract_features.main([net, "2", str(album), option]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "saved features to features.npz",
        "saved features to features.t7",
    ]
    paths = [str(album / name) for name in SORTED]
    features, tree = check(net, paths), t7.load("features.t7")
    assert tree["image_list"].array() == paths
    assert tree["features"].dtype == torch.float32
    np.testing.assert_array_equal(tree["features"].numpy(), features)
    with open("features.t7", "rb") as file:
        content = file.read()
    assert content.count(b"torch.FloatTensor") == 1
    # no row is kept for the image that could not be read
    assert len(tree["features"].untyped_storage()) == features.nbytes
    assert len(content) < features.nbytes + 1500


def test_unreadable_files_are_named_and_left_out(net, album, capsys):
    (album / "b.png").write_bytes(b"")
    os.symlink("nowhere", album / "z.png")
    assert extract_features.main([net, "2", str(album)]) == 1
    out, err = capsys.readouterr()
    assert out == "saved features to features.npz\n"
    first, second = err.splitlines()
    start = "extract_features.py: cannot read the image "
    assert first.startswith(start + repr(str(album / "b.png")))
    assert second == start + f"{str(album / 'z.png')!r}: No such file or directory"
    check(net, [str(album / name) for name in SORTED])


def test_nothing_readable_saves_nothing(net):
    with pytest.raises(InputError, match="nothing is saved"):
        extract_features.main([net, "gone.png"])
    assert os.listdir() == []


@pytest.mark.parametrize(
    "arguments",
    [[], ["net"], ["net", "-t7"], ["net", "4"], ["net", "4", "a", "b"]],
)
def test_a_command_without_files(capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        extract_features.main(arguments)
    sentence = "give MODEL FILE..., or MODEL BATCH_SIZE DIRECTORY (see -help)"
    assert capsys.readouterr() == ("", f"extract_features.py: {sentence}\n")


@pytest.mark.parametrize(
    "size, folder, message",
    [
        ("4", "gone", "cannot list the directory gone: No such file"),
        ("4", ".", r"no files in the directory \."),
        ("0", ".", "BATCH_SIZE 0: should be at least 1"),
        ("9" * 5000, ".", "BATCH_SIZE 9{16}: should be at least 1, and below 10\\^15"),
    ],
)
def test_wrong_directories(net, size, folder, message):
    with pytest.raises(InputError, match=message):
        extract_features.main([net, size, folder])


def test_features_that_cannot_be_written(net, album):
    os.mkdir("features.npz")
    with pytest.raises(InputError, match="features.npz is a folder; it should be a file"):
        extract_features.main([net, str(album / "a.jpg")])
    assert os.listdir() == ["features.npz"]


def test_as_a_command_from_anywhere(net, album):
    script = os.path.join(ROOT, "pretrained", "extract_features.py")
    relative = os.path.join("..", "album", "")
    command = [sys.executable, script, net, "4", relative]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "saved features to features.npz\n"
    check(net, [relative + name for name in SORTED])
    result = subprocess.run([*command, "extra"], capture_output=True, text=True)
    assert result.returncode == 2 and "BATCH_SIZE DIRECTORY" in result.stderr
    result = subprocess.run([*command[:-1], "gone"], capture_output=True, text=True)
    error = "extract_features.py: cannot list the directory gone: No such file or directory\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", error)


def test_a_net_without_features(monkeypatch):
    net = types.SimpleNamespace(config={"net": "own"})
    monkeypatch.setattr(inference, "load_folded", lambda source, classifier: net)
    with pytest.raises(InputError, match=r"own.pth: the net own has no function features\(images"):
        extract_features.main(["own.pth", "photo.jpg"])
