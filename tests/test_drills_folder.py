"""Drills: bytes of a run folder change, it is copied while a run writes, the clock is set back.

As test_drills.py: long, and every drill prints a line with its counts.
"""

import os
import random
import shutil
import time

import pytest
import torch
from support.forks import await_text, ended, finished, fork, same_folders
from support.runs import NET, results, same

import main
from engine import metrics
from runtime.errors import InputError
from storage import atomic

pytestmark = pytest.mark.slow
RUN = NET.replace("-batchSize 8", "-batchSize 18") + " -manualSeed 3 -nGPU 2 -LRSteps 3"
FLIPS = 500


class Cut(Exception):
    """Ends a run inside an epoch."""


@pytest.fixture
def run(tmp_path, monkeypatch, cifar):
    """run(words, stop): main.main in this process; with `stop`, cut off after so many batches."""
    monkeypatch.chdir(tmp_path)
    push = metrics.MetricQueue.push

    def run(words, stop=None):
        left = [stop]

        def counting(*args):
            if left[0] == 0:
                raise Cut
            left[0] = left[0] and left[0] - 1
            return push(*args)

        monkeypatch.setattr(metrics.MetricQueue, "push", counting)
        try:
            main.main([*RUN.split(), "-data", cifar, *words.split()])
        except Cut:
            assert stop
        monkeypatch.setattr(metrics.MetricQueue, "push", push)

    return run


def flip(path):
    """Change one byte: every other time one near an end, where the structure of a file is."""
    content = bytearray(path.read_bytes())
    edge = min(2000, len(content))
    place = random.randrange(len(content))
    if random.random() < 0.5:
        place = random.randrange(-edge, edge)
    content[place] ^= random.randrange(1, 256)
    path.write_bytes(content)
    return place, content[place]


def difference(path, changed, said):
    """What a failed comparison needs to be understood."""
    pairs = zip(results("straight", 3)[1:], results("run", 3)[1:])
    return (
        path.parent.name,
        path.name,
        changed,
        said,
        [pair for pair in pairs if pair[0] != pair[1]],
    )


def equal_or_named(one, other):
    """Compare the .pth files of two folders: (equal, damaged but named when read)."""
    equal = named = 0
    for name in sorted(os.listdir(one)):
        if not name.endswith(".pth"):
            continue
        try:
            found = atomic.load(other / name)
        except InputError as error:
            assert str(other / name) in str(error)
            named += 1
            continue
        assert alike(atomic.load(one / name), found), name
        equal += 1
    return equal, named


TIMES = ("seconds", "images_per_second", "data_wait", "peak_memory", "save", "resume", "saveEvery")
RUNS_OWN = ("digest", "bestDigest", "tensorboard")


def alike(one, other):
    """Whether two loaded values are equal, but for clock, machine and the way there."""
    if isinstance(one, dict):
        keys = [key for key in one if key not in TIMES + RUNS_OWN]
        return isinstance(other, dict) and all(
            key in other and alike(one[key], other[key]) for key in keys
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return one == other


def test_one_byte_is_changed(run, tmp_path, capsys):
    """In any file of a folder: the resumed run is equal, or the damage is named; never neither."""
    random.seed(5)
    run("-nEpochs 3 -save straight")
    run("-nEpochs 3 -save between -tensorboard true", stop=8)  # just before the third epoch
    run("-nEpochs 3 -save inside -tensorboard true -saveEvery 1e-9", stop=9)  # within it
    capsys.readouterr()
    places = [
        path for name in ("between", "inside") for path in sorted((tmp_path / name).iterdir())
    ]
    assert {path.name for path in places} >= {"inside_epoch.pth", "model_best.pth", "log.jsonl"}
    counts = dict.fromkeys(("equal", "equal and named", "refused and named", "older file named"), 0)
    for trial in range(FLIPS):
        path = places[trial % len(places)]
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(path.parent, tmp_path / "run")
        changed = flip(tmp_path / "run" / path.name)
        try:
            run("-nEpochs 3 -save run -resume run")
        except InputError as error:
            assert f"run/{path.name}" in str(error)
            counts["refused and named"] += 1
            continue
        said = capsys.readouterr().err
        assert alike(results("straight", 3), results("run", 3)), difference(path, changed, said)
        _, damaged = equal_or_named(tmp_path / "straight", tmp_path / "run")
        named = f"run/{path.name}" in said
        counts["equal and named" if named else "older file named" if damaged else "equal"] += 1
    print(f"\none byte: {FLIPS} trials in {len(places)} files, {counts}, 0 silently different")


def copy_slowly(source, target):
    """Copy a folder file by file, as cp while a run writes there; what is gone is left out."""
    target.mkdir()
    names = os.listdir(source)
    random.shuffle(names)
    for name in names:
        try:
            shutil.copyfile(source / name, target / name)
        except FileNotFoundError:
            continue
        time.sleep(random.random() * 0.03)


def test_copied_while_the_run_writes(cifar, tmp_path):
    random.seed(6)
    copies = 20
    command = RUN + " -nEpochs 30 -keep 2"
    finished(command + " -save straight", cifar, tmp_path)
    child, count = fork(command + " -saveEvery 1e-9 -save run", cifar, tmp_path), 0
    await_text(tmp_path / "said", "Time")
    while count < copies:
        time.sleep(random.random() * 0.3)
        if count < 2 or os.path.exists(tmp_path / "run" / "latest.pth"):
            copy_slowly(tmp_path / "run", tmp_path / f"copy{count}")
            count += 1
        if os.waitpid(child, os.WNOHANG)[0]:  # it has ended: another
            shutil.rmtree(tmp_path / "run")
            child = fork(command + " -saveEvery 1e-9 -save run", cifar, tmp_path)
    assert ended(child, 200) == 0
    afresh = refused = 0
    for number in range(copies):
        copy = tmp_path / f"copy{number}"
        words = f" -save copy{number} -resume copy{number}"
        if (copy / "latest.pth").exists() and not holds_checkpoint(copy):
            said = finished(command + words, cifar, tmp_path, status=1)
            assert f"no checkpoint in copy{number} is intact: File not found" in said
            (copy / "latest.pth").unlink()
            refused += 1
        afresh += "starting afresh" in finished(command + words, cifar, tmp_path)
        largest = same_folders(tmp_path / "straight", copy, 30)
    counts = f"{copies - afresh} resumed, {afresh} afresh, {refused} of them first refused"
    print(f"\ncopied: {copies} copies, {counts}, difference {largest}")


def holds_checkpoint(folder):
    """Whether a folder has the one file, or a pair of files, that is a checkpoint."""
    names = os.listdir(folder)
    pairs = (name.replace("optimState", "model") for name in names if "optimState" in name)
    return "inside_epoch.pth" in names or any(name in names for name in pairs)


def test_the_clock_is_set_back(cifar, tmp_path):
    """time.time() goes back an hour at each call; files and folders are of next year."""
    finished(RUN + " -nEpochs 4 -tensorboard true -save straight", cifar, tmp_path)

    def backwards():
        calls, real = [0], time.time

        def fake():
            calls[0] += 1
            return real() - 3600 * calls[0]

        time.time = fake

    for epochs in (1, 2, 3, 4):
        command = (
            RUN + f" -nEpochs {epochs} -tensorboard true -saveEvery 1e-9 -save run -resume run"
        )
        assert ended(fork(command, cifar, tmp_path, backwards), 200) == 0
        for name in os.listdir(tmp_path / "run"):
            next_year = time.time() + 3e7 * random.random()
            os.utime(tmp_path / "run" / name, (next_year, next_year))
    same(results(tmp_path / "straight", 4), results(tmp_path / "run", 4))
    print("\nclock set back: 4 resumes, difference 0.0")
