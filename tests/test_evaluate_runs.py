"""evaluate.py on what main.py trains and tests, in processes, and with many classes."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support.evaluations import evaluated, pair, scored
from support.runs import ROOT

import evaluate
import main
from engine import batchnorm
from formats import model_files
from runtime.errors import InputError


def wrong(text):
    """(top-1, top-5, images) of the last lines, one for each reading."""
    return re.findall(r"(\d+) and (\d+) of (\d+) images wrong", text)


def program(*words):
    command = [sys.executable, os.path.join(ROOT, "evaluate.py"), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)


@pytest.mark.slow  # test_predictions.py has the same by images, without dense outputs
@pytest.mark.parametrize(
    "count, words",
    [
        (3, "-dense 32,48 -batchSize 14"),  # 7 and 1 images a batch, of different sizes
        (2, "-tenCrop true -testScale 48 -testCrop 32 -batchSize 50"),
    ],
)
def test_processes_count_each_image_once(photos, tmp_path, count, words, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [path for path, _ in pair(tmp_path, photos).values()]
    words = [*paths, "-data", photos, *words.split(), "-classes", "two"]
    (tmp_path / "two").write_text("striped\nplain\n")
    evaluate.main(words)
    alone = wrong(capsys.readouterr().out)
    done = program(*words, "-nProcs", str(count))
    assert done.returncode == 0, done.stderr
    assert f"=> {count} processes on cpu" in done.stderr
    assert len(alone) == 2 and alone[0][2] == "8" and wrong(done.stdout) == alone


def test_unreadable_images_are_left_out(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, "photos")
    with open("photos/val/plain/2.jpg", "wb") as file:
        file.write(b"no picture")
    (path, _), _ = pair(tmp_path, photos).values()
    words = [path, "-dense", "32,48", "-precision", "double"]
    with pytest.raises(InputError, match="photos/val/plain/2.jpg.*-skipCorrupt true"):
        evaluated(*words, data="photos")
    _, whole, _ = evaluated(*words, data=photos)
    _, plain, _ = evaluated(*words, "-skipCorrupt", "true", "-batchSize", "6", data="photos")
    assert torch.allclose(plain, whole[[0, 1, 3, 4, 5, 6, 7]], rtol=1e-9)
    assert wrong(capsys.readouterr().out)[-1][2] == "7"


def test_as_main_tests(photos, tmp_path, monkeypatch):
    """A net that main.py has trained, tested on photos by main.py; then by its folder here.

    The crop in its file is larger than that of the training, so it is pooled in windows.
    """
    monkeypatch.chdir(tmp_path)
    train = "-netType resnet -depth 18 -batchSize 6 -nEpochs 1 -LR 0.001 -nThreads 0 "
    own = "-testScale 100 -testCrop 96"
    _, trained = scored(main.main, [*f"{train} -trainCrop 64 {own}".split(), "-data", photos])
    _, again = scored(main.main, "-resume checkpoints -testOnly true -nThreads 0".split())
    assert torch.allclose(torch.cat(trained)[-8:], torch.cat(again), rtol=1e-4, atol=1e-5)
    test = "-testOnly true -retrain checkpoints/model_1.pth -batchSize 3 -nThreads 0 -data"
    for size, crops in (
        ("", 1),
        ("-testScale 320 -testCrop 320", 1),
        ("-tenCrop true -testScale 60 -testCrop 50", 10),
    ):
        _, theirs = scored(main.main, [*test.split(), photos, *size.split()])
        _, ours, _ = evaluated("checkpoints", *size.split(), data=photos)
        # other sizes of a batch may round otherwise in float32
        assert torch.allclose(torch.cat(theirs) / crops, ours, rtol=1e-4, atol=1e-5)
        if not size:  # the model's file says it
            assert torch.allclose(torch.cat(trained)[-8:], ours, rtol=1e-4, atol=1e-5)
    main.main(["-resume", "checkpoints", *"-nEpochs 2 -testPool global -nThreads 0".split()])
    _, theirs = scored(main.main, [*test.replace("model_1", "model_2").split(), photos])
    for words, same in ([], True), (["-testPool", "windows"], False):
        _, ours, _ = evaluated("checkpoints/model_2.pth", *words, data=photos)
        assert torch.allclose(torch.cat(theirs), ours, rtol=1e-4, atol=1e-5) == same
    sides = []
    monkeypatch.setattr(batchnorm.Estimate, "add", lambda _, x, sizes: sides.append(x.shape[2:]))
    monkeypatch.setattr(batchnorm.Estimate, "apply", lambda _: None)
    scored(main.main, [*test.split(), photos, "-recomputeBN", "1"])
    evaluated("checkpoints", "-recomputeBN", "1", data=photos)
    assert sides == [(64, 64)] * 2  # of the training, not of the test


def test_without_training_images(photos, tmp_path, monkeypatch, capsys):
    """To test, main.py and evaluate.py need val/ only; other things need train/."""
    monkeypatch.chdir(tmp_path)
    (path, _), _ = pair(tmp_path, photos).values()
    os.mkdir("alone")
    os.symlink(os.path.join(photos, "val"), "alone/val")
    test = f"-testOnly true -retrain {path} -batchSize 3 -nThreads 0"
    whole, alone = (scored(main.main, [*test.split(), "-data", d])[1] for d in (photos, "alone"))
    assert torch.equal(torch.cat(whole), torch.cat(alone))
    assert torch.equal(evaluated(path, data=photos)[1], evaluated(path, data="alone")[1])
    for command in "-netType resnet -depth 18", test + " -recomputeBN 1":
        with pytest.raises(SystemExit):
            main.main([*command.split(), "-data", "alone"])
        assert "missing `train` directory: alone/train" in capsys.readouterr().err


def test_cifar_as_main_tests(cifar, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main.main(f"-netType resnet -dataset cifar10 -depth 8 -nEpochs 1 -data {cifar}".split())
    test = "-testOnly true -dataset cifar10 -retrain checkpoints/model_1.pth -batchSize 8"
    for more in "", " -recomputeBN 2":
        capsys.readouterr()
        main.main([*(test + more).split(), "-data", cifar])
        theirs = capsys.readouterr().out
        words = ["checkpoints", *more.split(), "-batchSize", "8"]
        evaluate.main([*words, "-dataset", "cifar10", "-data", cifar, "-nThreads", "0"])
        ours = capsys.readouterr().out
        assert re.findall(r"top1 .*", theirs) == re.findall(r"top1 .*", ours) != []
        assert ours.count(" | Batch norm: [0]") == (2 if more else 0)


# classes


@pytest.fixture
def many(tmp_path, monkeypatch, capsys):
    """A net of 5,000 classes, three of which have images, and its data: trained by main.py."""
    monkeypatch.chdir(tmp_path)
    names = [f"n{i:08d}" for i in range(5000)]
    random = np.random.default_rng(3)
    for name in names:
        os.makedirs(f"five/train/{name}")
    for name in (names[7], names[4000], names[4999]):
        for path in (f"five/train/{name}", f"five/val/{name}"):
            os.makedirs(path, exist_ok=True)
            pixels = random.integers(0, 256, (2, 40, 44, 3), dtype=np.uint8)
            for i in (0, 1):
                Image.fromarray(pixels[i]).save(f"{path}/{i}.png")
    words = "-netType resnet -depth 18 -nEpochs 1 -nThreads 0 -LR 0.001 -testScale 32 -testCrop 32"
    main.main([*words.split(), "-data", "five"])
    capsys.readouterr()
    return names


@pytest.mark.slow
def test_five_thousand_classes(many):
    """Trained on 5,000, tested among all and among a listed three: the paper's Table 6."""
    content = model_files.read("checkpoints/model_1.pth")
    assert content["classes"] == many and content["config"]["classes"] == 5000
    with open("three.txt", "w") as file:
        file.write("\n".join([many[4999], many[7], many[4000]]))
    os.makedirs("three/train")
    os.rename("five/val", "three/val")  # as ImageNet-1K: its own folders, no others
    for i in (7, 4000, 4999):
        os.rename(f"five/train/{many[i]}", f"three/train/{many[i]}")
    _, all, _ = evaluated("checkpoints", data="three")
    assert all.shape == (6, 5000)
    (result,), three, _ = evaluated("checkpoints", "-classes", "three.txt", data="three")
    assert torch.equal(three, all[:, [4999, 7, 4000]])
    best = three.argmax(1)
    missed = int((best != torch.tensor([1, 1, 2, 2, 0, 0])).sum())
    assert result == (100 * missed / 6, 0.0)
