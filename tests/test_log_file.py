"""log.jsonl of long runs: the checkpoint knows it, whatever happened to the file since."""

import contextlib
import json
import multiprocessing
import os
import shutil
import statistics
import threading
import time

import pytest
import torch
from support.tiny import CPU, entered, options
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import checkpoints
import train
from dataloader import DataLoader
from datasets.in_memory import Images
from main import train_epochs
from storage import log
from storage.run_folder import RunFolder

BEST = 3  # the best epoch, long before the lines that a checkpoint holds
EPOCHS = 25
SOAK = 10_000


def epoch(run, n):
    """Save an epoch whose line is a function of n."""
    best = {"top1": 100.0 - min(n, BEST), "top5": 1.0}
    run.folder.save(n, *run.trainer.saved(n), n == BEST, {"seconds": n / 3, "best": best})


def newest(folder):
    return checkpoints.newest(str(folder))[0]


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()[1:]]


def epochs(folder):
    return [line["epoch"] for line in lines(folder)]


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """The folder of a run of 25 epochs. Of each epoch, the log was copied to log_N."""
    folder = tmp_path_factory.mktemp("long")
    fsync, os.fsync = os.fsync, lambda file: None
    with entered(folder) as run:
        for n in range(1, EPOCHS + 1):
            epoch(run, n)
            run.folder.wait()
            shutil.copy(folder / "log.jsonl", folder / f"log_{n}")
    os.fsync = fsync
    return folder


def resumed(folder, *words, until=EPOCHS + 1):
    """Resume the run in a folder and save the epochs up to `until`."""
    checkpoint = newest(folder)
    with entered(folder, *words, "-resume", str(folder), checkpoint=checkpoint) as run:
        for n in range(checkpoint["epoch"] + 1, until + 1):
            epoch(run, n)


def test_a_checkpoint_does_not_grow(long_run):
    sizes = [os.path.getsize(long_run / f"optimState_{n}.pth") for n in range(12, EPOCHS + 1)]
    assert max(sizes) - min(sizes) <= 128
    assert epochs(long_run) == list(range(1, EPOCHS + 1))


def test_a_log_of_more_values_than_a_checkpoint_may_hold(tmp_path):
    """As that of a detector on COCO after 3,000 of its 90,000 epochs."""
    scores = {f"class {n}": n for n in range(80)}
    with entered(tmp_path) as run:
        for n in range(1, 3200):
            run.folder.log.add({"epoch": n, "test": scores})
        epoch(run, 3200)
    assert newest(tmp_path)["epoch"] == 3200
    resumed(tmp_path, until=3201)
    assert epochs(tmp_path) == list(range(1, 3202)) and not list(tmp_path.glob("earlier-*"))


def spoil(folder, how):
    """Change the log of a folder, as a kill, a copy or a person does."""
    path = folder / "log.jsonl"
    text = path.read_bytes()
    line = json.dumps({"epoch": EPOCHS + 1, "seconds": 9.0}).encode()
    if how == "removed":
        path.unlink()
    elif how.isdigit():
        shutil.copy(folder / f"log_{how}", path)
    else:
        path.write_bytes(
            {
                "whole": text,
                "one epoch more": text + line + b"\n",
                "a torn line more": text + line[:20],
                "tested": text + b'{"final": {"top1": 3.0}}\n',
                "tested, torn": text + b'{"final": {"to',
                "a torn line": text[:-9],
                "without its end": text[: len(text) // 3],
                "one digit": text.replace(b'"epoch": 7', b'"epoch": 8', 1),
                "another header": b'{"options": {}}\n' + text.partition(b"\n")[2],
                "of another run": text.replace(b"0.3333", b"0.4444"),
                "empty": b"",
                "no log": os.urandom(3000),
            }[how]
        )
    return path.read_bytes() if path.exists() else None


KEPT = ["whole", "tested", "tested, torn", "a torn line", "another header", "15"]
CUT = ["one epoch more", "a torn line more"]
LOST = ["removed", "without its end", "one digit", "of another run", "empty", "no log", "14"]


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("how", [*KEPT, *CUT, *LOST])
def test_a_log_that_is_not_as_it_was_left(tmp_path, long_run, how, elsewhere, capsys, monkeypatch):
    """The log is that of a run that never stopped, or a line says which epochs it lacks."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    folder = tmp_path / "run"
    names = [f"model_{EPOCHS}.pth", f"optimState_{EPOCHS}.pth", "latest.pth", "model_best.pth"]
    folder.mkdir()
    for name in [*names, "log.jsonl", "log_14", "log_15"]:
        shutil.copy(long_run / name, folder)
    found = spoil(folder, how)
    target = tmp_path / "other" if elsewhere else folder
    checkpoint = newest(folder)
    with entered(target, "-resume", str(folder), checkpoint=checkpoint) as run:
        epoch(run, EPOCHS + 1)
    said = capsys.readouterr().err
    first = EPOCHS - 9 if how in LOST else 1
    lost = f"lacks the lines of the epochs before {first}: {target}/log.jsonl begins with epoch "
    assert epochs(target) == list(range(first, EPOCHS + 2))
    assert lines(target)[:-1] == lines(long_run)[first - 1 :]
    assert (lost in said) == (how in LOST)
    aside = folder / "earlier-1" / "log.jsonl"
    assert aside.exists() == (not elsewhere and how in CUT + LOST and how != "removed")
    kept = aside if aside.exists() else folder / "log.jsonl"
    assert not (aside.exists() or elsewhere) or not found or kept.read_bytes() == found
    assert said.count("\n") == aside.exists() + (how in LOST)
    resumed(target, until=EPOCHS + 2)  # from here on nothing is missing
    assert epochs(target) == list(range(first, EPOCHS + 3)) and not capsys.readouterr().err


@pytest.mark.parametrize("with_log", [True, False])
def test_going_back_by_two_files(tmp_path, long_run, with_log, capsys):
    names = ["model_20.pth", "optimState_20.pth", *["log.jsonl"] * with_log]
    for name in names:
        shutil.copy(long_run / name, tmp_path)
    resumed(tmp_path, until=21)
    assert epochs(tmp_path) == list(range(1 if with_log else 11, 22))
    assert ("begins with epoch 11" in capsys.readouterr().err) == (not with_log)


def test_the_rest_of_a_resume_reads_the_log(tmp_path, long_run, capsys):
    """TensorBoard shows every epoch once; the best model is found by the line of its epoch."""
    folder = tmp_path / "run"
    shutil.copytree(long_run, folder)
    os.truncate(folder / "model_best.pth", 100)
    resumed(folder, "-tensorboard", "true")
    assert f"made again from {folder}/model_{BEST}.pth" in capsys.readouterr().err
    resumed(folder, "-tensorboard", "true", until=EPOCHS + 3)
    shown = EventAccumulator(str(folder))
    shown.Reload()
    seconds = [(event.step, event.value) for event in shown.Scalars("seconds")]
    assert seconds == [(n, pytest.approx(n / 3)) for n in range(1, EPOCHS + 4)]


@pytest.mark.parametrize("how", ["removed", "empty"])
def test_a_log_that_goes_while_the_run_writes(tmp_path, how, capsys):
    with entered(tmp_path) as run:
        for n in range(1, 16):
            epoch(run, n)
            run.folder.wait()
            if n == 13:
                spoil(tmp_path, how)
    assert epochs(tmp_path) == list(range(4, 16))
    assert "lacks the lines of the epochs before 4: " in capsys.readouterr().err
    resumed(tmp_path, until=16)
    assert epochs(tmp_path) == list(range(4, 17))


class Means(torch.nn.Module):
    """A net of 8 numbers, which sees an image's mean colour."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 2)
        self.config, self.classes, self.input_spec = {"net": "means"}, ["a", "b"], None

    def forward(self, x):
        return self.fc(x.mean((2, 3)))


def soak(folder, until, measure):
    """Train on a handful of images, from the checkpoint in a folder up to an epoch."""
    generator, info = torch.Generator().manual_seed(1), {}
    for split, count in (("train", 6), ("val", 3)):
        pixels = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
        info[f"{split}_images"] = pixels.numpy()
        info[f"{split}_labels"] = torch.arange(count).numpy() % 2
    loaders = [
        DataLoader(
            Images(info, split, (125.0,) * 3, (60.0,) * 3, padding=1, mirror=True),
            CPU,
            training=split == "train",
            batch_size=6,
        )
        for split in ("train", "val")
    ]
    torch.manual_seed(1)
    checkpoint, model = newest(folder), Means()
    if checkpoint:
        model.load_state_dict(torch.load(checkpoint["modelFile"])["model"])
    opt = options(folder, "-resume", str(folder), "-keep", "2", "-tensorboard", "true")
    optimizer = train.optimizer(model, 0.01, 0.9, 1e-4)
    trainer = train.Trainer(model, train.criterion(), optimizer, lambda epoch: 1.0, CPU)
    if checkpoint:
        trainer.load_state(checkpoint)

    def line(epoch, scores):
        measure(epoch)
        return log.entry(trainer, scores, dict(zip(scores, run.best)), 9)

    epochs = range(checkpoint["epoch"] + 1 if checkpoint else 1, until + 1)
    with RunFolder(str(folder)) as run:
        run.begin(opt, checkpoint, model, CPU)
        test = (lambda epoch: trainer.test(epoch, loaders[1]).scores(),)
        train_epochs(epochs, trainer, lambda epoch: loaders[0], *test, line, run)


def measured(folder):
    """(processor time, MB, open files, threads) after each 100 epochs of a soak and a resume."""
    os.fsync = lambda file: None
    found = []

    def measure(epoch):
        if epoch % 100 == 0:
            with open("/proc/self/statm") as file:
                memory = int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
            files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
            found.append((time.process_time(), memory, files, threads))

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        soak(folder, SOAK, measure)
        soak(folder, SOAK + 1, measure)
    return found


@pytest.mark.slow
def test_ten_thousand_epochs(tmp_path):
    """Time, memory, open files and threads stay as they were after 100; then the run resumes."""
    with multiprocessing.get_context("spawn").Pool(1) as alone:  # without other tests' memory
        found = alone.apply(measured, (tmp_path / "run",))
    assert epochs(tmp_path / "run") == list(range(1, SOAK + 2))
    times, memory, files, threads = zip(*found)
    times = [after - before for before, after in zip(times, times[1:])]
    early, late = statistics.median(times[:20]), statistics.median(times[-20:])
    spread = [max(each) - min(each) for each in (memory, files, threads)]
    print(
        f"\n{SOAK:,} epochs: {10 * early:.1f} and {10 * late:.1f} ms an epoch at the beginning and "
        f"at the end; {spread[0]:.1f} MB, {spread[1]} files, {spread[2]} threads between the "
        "least and the most"
    )
    assert late < 1.2 * early and spread[0] < 20 and max(spread[1:]) <= 2
