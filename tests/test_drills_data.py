"""Drills: images and classes vanish, appear, are renamed; too few of them, and very many.

As test_drills.py: long, and every drill prints a line with its counts.
"""

import functools
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from support.forks import finished
from support.runs import results, same

import main
from datasets import imagenet_gen
from engine import metrics
from runtime.errors import InputError

pytestmark = pytest.mark.slow
RUN = "-netType resnet -depth 18 -batchSize 6 -trainCrop 64 -LR 0.001 -nThreads 0 -nEpochs 2"
RUN += " -manualSeed 4"
REFUSED = "the data has other classes than the checkpoint: "
OTHERS = "=> the images in -data have changed since the checkpoint: the new ones are used"


class Cut(Exception):
    """Ends a run inside an epoch."""


@pytest.fixture
def data(photos, tmp_path):
    """A copy of the photos that may be changed."""
    shutil.copytree(photos, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, data):
    """run(words, at, act): main.main in this process, with act() before the at-th batch.

    Two training batches and two of the test are an epoch. What it says, or the error's sentence.
    """
    monkeypatch.chdir(tmp_path)
    push = metrics.MetricQueue.push

    def run(words, at=0, act=None):
        count = [0]

        def counting(*args):
            count[0] += 1
            if count[0] == at:
                act()
            return push(*args)

        monkeypatch.setattr(metrics.MetricQueue, "push", counting)
        try:
            main.main([*RUN.split(), "-data", str(data), *words.split()])
        except Cut:
            return "cut"
        except InputError as error:
            return str(error)
        except SystemExit:  # an option is wrong
            return capsys.readouterr().err.removesuffix("\n")
        finally:
            said = capsys.readouterr()
        return said.err + said.out

    return run


def cut():
    raise Cut


def of_both(data, act):
    for split in ("train", "val"):
        act(data / split)


CHANGES = {
    "an image vanishes": (lambda data: os.remove(data / "train/plain/1.jpg"), OTHERS),
    "an image appears": (
        lambda data: shutil.copy(data / "train/plain/1.jpg", data / "train/striped/9.jpg"),
        OTHERS,
    ),
    "an image is renamed": (
        lambda data: os.rename(data / "train/plain/0.jpg", data / "train/plain/z.jpg"),
        OTHERS,
    ),
    "an image of val appears": (
        lambda data: shutil.copy(data / "val/plain/1.jpg", data / "val/striped/9.jpg"),
        OTHERS,
    ),
    "a class vanishes": (
        lambda data: of_both(data, lambda split: shutil.rmtree(split / "plain")),
        REFUSED + "'plain' is missing; ",
    ),
    "a class appears": (lambda data: os.mkdir(data / "train/new"), REFUSED + "'new' is new; "),
    "a class is renamed, the order stays": (
        lambda data: of_both(data, lambda split: os.rename(split / "plain", split / "quiet")),
        REFUSED + "'plain' is missing and 'quiet' is new; ",
    ),
    "a class is renamed, the order changes": (
        lambda data: of_both(data, lambda split: os.rename(split / "plain", split / "unstriped")),
        REFUSED + "'plain' is missing and 'unstriped' is new; ",
    ),
    "nothing but the time of a folder": (lambda data: os.utime(data / "train/plain"), None),
    "a file that is no image": (lambda data: (data / "train/plain/notes.txt").touch(), None),
}


def test_data_that_change_between_a_stop_and_its_resume(run, data, tmp_path):
    """Named, or refused, or nothing that matters and then equal; also inside an epoch."""
    run("-save straight")
    shutil.copytree(data, tmp_path / "whole")
    counts = {"named": 0, "refused": 0, "equal": 0}
    for stop in (5, 6):  # the first batch of the second epoch is not done, or done and saved
        assert run(f"-save stop{stop} -saveEvery 1e-9", stop, cut) == "cut"
        for name, (change, expected) in list(CHANGES.items())[stop == 5 and 4 :]:
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            shutil.copytree(tmp_path / f"stop{stop}", tmp_path / "run")
            change(data)
            said = run("-save run -resume run")
            shutil.rmtree(data)
            shutil.copytree(tmp_path / "whole", data)
            if expected is None:
                assert OTHERS not in said
                same(results("straight", 2), results("run", 2))
                counts["equal"] += 1
                continue
            assert said.startswith(expected) or f"\n{expected}\n" in said, (name, said)
            assert ("epoch 2 begins again, because the images changed" in said) == (
                stop == 6 and expected == OTHERS
            )
            if name == "a class vanishes":  # nothing is lost: with the old classes it goes on
                run("-save run -resume run")
                same(results("straight", 2), results("run", 2))
            counts["named" if expected == OTHERS else "refused"] += 1
    print(f"\ndata changed while stopped: {sum(counts.values())} trials, {counts}, 0 silent")


def test_data_that_change_in_a_run(run, data, tmp_path):
    """A missing image is named and ends the run, or is left out; a new one is not seen."""
    run("-save straight")
    shutil.copytree(data, tmp_path / "whole")
    named = equal = 0
    for name, (change, _) in CHANGES.items():
        # in the last batch of the first epoch: the second has read nothing yet
        said = run(f"-save run{named + equal}", 4, functools.partial(change, data))
        folder = f"run{named + equal}"
        if "cannot read the image" in said:
            assert f"'{data}/" in said and "No such file" in said and "\n" not in said
            shutil.rmtree(data)
            shutil.copytree(tmp_path / "whole", data)
            said = run(f"-save {folder} -resume {folder}")
            named += 1
        else:
            equal += 1
        assert " * Finished" in said, (name, said)
        same(results("straight", 2), results(folder, 2))
        shutil.rmtree(data)
        shutil.copytree(tmp_path / "whole", data)
    assert named == 5
    gone = data / "train/plain/1.jpg"
    said = run("-save left -skipCorrupt true", 3, lambda: os.remove(gone))
    assert (
        f" | skipped cannot read the image '{gone}': No such file or directory (1 so far)" in said
    )
    print(
        f"\ndata changed in a run: {named} named and resumed, {equal} unseen, 1 left out, all equal"
    )


def test_nearly_nothing(run, data, tmp_path):
    shutil.copytree(data, tmp_path / "whole")
    refused = trained = 0

    def again():
        shutil.rmtree(data)
        shutil.copytree(tmp_path / "whole", data)

    for split in ("train", "val"):
        for empty in ("no folder", "no class", "no image"):
            for path in [data / split] if empty == "no folder" else list((data / split).iterdir()):
                shutil.rmtree(path)
                if empty == "no image":
                    path.mkdir()
            said = run("-save refused")
            assert "\n" not in said and str(data / split) in said, said
            assert not os.path.exists("refused")
            refused += 1
            again()
    for folder in (data / "train", data / "val"):  # one image in all, and the same to test
        shutil.rmtree(folder / "striped")
        for path in (folder / "plain").iterdir():
            if path.name != "0.jpg":
                os.remove(path)
    for words in ("", "-nGPU 2", "-nGPU 3 -nThreads 2", "-batchSize 1", "-tenCrop true"):
        said = run(f"-save one{trained} {words}")
        assert " * Finished top1:  0.000  top5:  0.000" in said, said
        trained += 1
    os.remove(data / "val/plain/0.jpg")
    assert "no images" in run("-save refused")
    print(f"\nnearly nothing: {refused + 1} refused, {trained} of one image trained")


def test_a_hundred_thousand_classes(photos, tmp_path, monkeypatch):
    """With an empty file each: listed. With images in two of them: trained, saved and tested."""
    monkeypatch.chdir(tmp_path)
    count = 100_000
    train = tmp_path / "data/train"
    began = time.monotonic()
    for number in range(count):
        os.makedirs(train / f"c{number:06d}")
        (train / f"c{number:06d}" / "0.jpg").touch()
    shutil.copytree(Path(photos) / "val/plain", tmp_path / "data/val/c000007")
    made = time.monotonic() - began
    command = "-data data -depth 18 -netType resnet -nEpochs 1 -trainCrop 64 -batchSize 12 "
    command += "-LR 0.001 -nThreads 1"
    opt = main.opts.parse(command.split())
    times = []
    for _ in range(2):
        began = time.monotonic()
        assert len(imagenet_gen.classes(opt)) == count
        imagenet_gen.exec(opt, "list.npz")
        times.append(time.monotonic() - began)
    for number in range(count):
        os.remove(train / f"c{number:06d}" / "0.jpg")
    for number, name in ((3, "plain"), (count - 1, "striped")):
        shutil.copytree(Path(photos) / "train" / name, train / f"c{number:06d}", dirs_exist_ok=True)
    began = time.monotonic()
    said = finished(command + " -save run", "data", tmp_path)
    seconds = time.monotonic() - began
    assert " * Finished" in said
    with open("run/log.jsonl") as file:
        peak = json.loads(file.read().splitlines()[1])["peak_memory"] >> 20
    print(
        f"\n{count} classes: made in {made:.0f} s, listed in {min(times):.1f} s; "
        f"an epoch of 12 images with its start and save {seconds:.0f} s, {peak} MiB"
    )
