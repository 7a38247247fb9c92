"""log.jsonl against the lines that its run printed; TensorBoard reads the events back."""

import errno
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from support import tiny
from support.runs import NET, ROOT
from support.tiny import entered
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

import main
import opts
from parallel.signals import Interrupted
from runtime.errors import InputError
from storage import atomic, log
from storage.tensorboard import TensorBoardLog

DIGITS = (
    "-dataset digits -netType resnet -depth 8 -batchSize 500 -nGPU 3 -nEpochs 3 "
    "-LRSteps 2 -tensorboard true"
)


def read(folder):
    with open(os.path.join(folder, "log.jsonl")) as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run of main.py: (folder, its lines of text, the most memory that it had, in bytes)."""
    folder = tmp_path_factory.mktemp("digits")
    process = subprocess.Popen(
        [sys.executable, os.path.join(ROOT, "main.py"), *DIGITS.split()],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return folder / "checkpoints", text, 1024 * usage.ru_maxrss


def numbers(text, kind, epoch):
    """The numbers of each printed line of an epoch: (lines, numbers after the brackets)."""
    found = [line for line in text.splitlines() if line.startswith(f" | {kind}: [{epoch}]")]
    return np.array([re.findall(r"\d+\.\d+", line) for line in found], float)


def test_the_first_line(digits):
    folder, _, _ = digits
    about = read(folder)[0]
    model = atomic.load(folder / "model_3.pth")
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    weights = [t for name, t in model["model"].items() if not name.endswith(statistics)]
    commit = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    status = ["git", "-C", ROOT, "status", "--porcelain", "--untracked-files=no"]
    changes = subprocess.run(status, capture_output=True, text=True).stdout
    assert about["changed"] == (bool(changes) if commit else None)
    assert about["parameters"] == sum(tensor.numel() for tensor in weights)
    assert about["net"] == model["config"]
    assert about["options"]["dataset"] == "digits" and about["options"]["LRSteps"] == [2]
    assert about["python"] == sys.version.split()[0] and about["commit"] == (commit or None)
    for name in ("torch", "torchvision", "numpy"):
        assert about[name].split("+")[0] == importlib.metadata.version(name).split("+")[0]
    assert (about["replicas"], about["processes"]) == (3, 1)
    assert about["images_per_statistic"] == [167, 167, 166]
    assert (about["device"], about["threads"]) == ("cpu", 1)


@pytest.mark.parametrize("driver", ["595.71.05", None])
def test_the_first_line_of_a_run_on_cuda(tmp_path, monkeypatch, driver):
    """Device and driver, which nvidia-smi prints for each device; None where that is missing."""
    if driver:
        program = tmp_path / "nvidia-smi"
        program.write_text(
            f"#!/bin/sh\n[ $1 = --query-gpu=driver_version ] && printf '{driver}\\n%.0s' 1 2\n"
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if driver else str(tmp_path))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA X")
    opt = opts.parse("-dataset cifar10 -depth 20".split())
    about = log.header(opt, tiny.model(), torch.device("cuda", 0))
    assert (about["device"], about["driver"]) == ("NVIDIA X", driver)
    assert (about["cuda"], about["devices"]) == (torch.version.cuda, 1)


def test_a_changed_file_is_noticed(tmp_path, monkeypatch):
    """A commit, a change to a file of it, a file that is not of it, and no repository."""
    monkeypatch.setattr(log, "ROOT", str(tmp_path))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def changed():
        opt = opts.parse("-dataset cifar10 -depth 20".split())
        return log.header(opt, tiny.model(), torch.device("cpu"))["changed"]

    def git(*words):
        person = ["-c", "user.name=n", "-c", "user.email=e@x.invalid"]
        subprocess.run(["git", "-C", tmp_path, *person, *words], check=True, capture_output=True)

    assert changed() is None
    (tmp_path / "a.py").write_text("1")
    git("init")
    git("add", "a.py")
    git("commit", "-m", "a")
    (tmp_path / "b.py").write_text("not of the commit")
    assert changed() is False
    (tmp_path / "a.py").write_text("2")
    assert changed() is True


def test_epochs_are_what_was_printed(digits):
    """Printed numbers have 3 decimals, the loss 4: each is off by half of the last at most."""
    folder, text, memory = digits
    sizes, val_sizes = np.array([500, 500, 500, 1]), np.array([296])
    lines = read(folder)[1:]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    best = []
    for line in lines:
        time, waited, loss, top1, top5 = numbers(text, "Epoch", line["epoch"]).T
        test_time, test_waited = numbers(text, "Test", line["epoch"]).T[:2]
        means = [float((x * sizes).sum() / 1501) for x in (top1, top5, loss)]
        assert line["train"] == pytest.approx(
            dict(zip(("top1", "top5", "loss"), means)), abs=5.1e-4
        )
        tested = re.search(rf"# {line['epoch']} +top1: +(\S+)  top5: +(\S+)", text).groups()
        assert line["test"] == pytest.approx(
            dict(zip(("top1", "top5"), map(float, tested))), abs=5.1e-4
        )
        wrong = line["test"]["top1"] / 100 * val_sizes[0]
        assert wrong == pytest.approx(round(wrong))
        best.append(line["test"])
        assert line["best"] == min(best, key=lambda errors: errors["top1"])
        assert line["rate"] == pytest.approx(0.02 if line["epoch"] < 2 else 0.002, rel=1e-12)
        assert line["seconds"] == pytest.approx(time.sum() + test_time.sum(), abs=5 * 5.1e-4)
        assert line["data_wait"] == pytest.approx(waited.sum() + test_waited.sum(), abs=2.6e-3)
        assert line["images_per_second"] == pytest.approx(1501 / time.sum(), rel=0.01)
        assert memory / 2 < line["peak_memory"] <= memory
    assert lines[0]["peak_memory"] <= lines[-1]["peak_memory"]


def steps(folder, tag="seconds"):
    """(step, value) of a tag, as TensorBoard shows a folder."""
    shown = EventAccumulator(str(folder))
    shown.Reload()
    return [(event.step, event.value) for event in shown.Scalars(tag)]


def check_events(folder):
    """TensorBoard shows the log's numbers, each once, in float32."""
    lines = read(folder)[1:]
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    times = [event.wall_time for event in accumulator.Scalars("rate")]
    assert times == sorted(times)
    parts = {"train": ("top1", "top5", "loss"), "test": ("top1", "top5"), "best": ("top1", "top5")}
    wanted = {f"{kind}/{name}" for kind, names in parts.items() for name in names}
    singles = {"rate", "seconds", "images_per_second", "data_wait", "peak_memory"}
    singles |= {"skipped", "odd"}
    assert set(accumulator.Tags()["scalars"]) == wanted | singles
    for tag in wanted | singles:
        kind, _, name = tag.partition("/")
        values = [line[kind][name] if name else line[kind] for line in lines]
        assert steps(folder, tag) == [(n, float(np.float32(v))) for n, v in enumerate(values, 1)]


def test_events(digits):
    check_events(digits[0])


def test_a_resumed_run_counts_the_time_before_the_stop(tmp_path, monkeypatch, capsys, cifar):
    """Interrupted in an epoch and in a test: the times are the sums of all printed lines."""
    monkeypatch.chdir(tmp_path)
    command = [*(NET + " -nEpochs 3 -tensorboard true -data").split(), cifar]
    places = ["in epoch 2 after iteration 3 of 5", "in the test of epoch 2 after batch 1 of 3"]

    def poll(self, received, where, flush):
        if where in places:
            places.remove(where)
            self.save(final=True)
            raise Interrupted(15, where, self.folder)

    monkeypatch.setattr("parallel.signals.Interrupts.poll", poll)
    for _ in range(2):
        with pytest.raises(Interrupted):
            main.main(command)
        command += ["-resume", "checkpoints"]
    main.main(command)
    text = capsys.readouterr().out
    lines = read("checkpoints")[1:]
    assert [line["epoch"] for line in lines] == [1, 2, 3] and not places
    for line in lines:
        train, test = (numbers(text, kind, line["epoch"]) for kind in ("Epoch", "Test"))
        assert (len(train), len(test)) == (5, 3)
        printed = train[:, 0].sum() + test[:, 0].sum()
        assert line["seconds"] == pytest.approx(printed, abs=8 * 5.1e-4)
        printed = train[:, 1].sum() + test[:, 1].sum()
        assert line["data_wait"] == pytest.approx(printed, abs=8 * 5.1e-4)
    check_events("checkpoints")


def test_events_are_appended_and_others_stay(tmp_path):
    """TensorBoard follows a growing file; files of other programs in the folder are not ours."""
    other = tmp_path / "events.out.tfevents.1.host.2.3"
    other.write_bytes(b"of another program")
    with entered(tmp_path, "-tensorboard", "true") as run:
        inodes, sizes = set(), []
        for n in (1, 2, 3):
            run.epoch(n)
            run.folder.wait()
            (path,) = [p for p in tmp_path.iterdir() if p.name.endswith(".main")]
            inodes.add(path.stat().st_ino)
            sizes.append(path.stat().st_size)
    assert len(inodes) == 1 and sizes == sorted(set(sizes))
    assert other.read_bytes() == b"of another program"


def test_a_folder_that_is_made_again_has_the_whole_event_file(tmp_path):
    with entered(tmp_path / "run", "-tensorboard", "true") as run:
        run.epoch(1)
        run.folder.wait()
        shutil.rmtree(tmp_path / "run")
        run.epoch(2)
    assert len([*(tmp_path / "run").glob("*.main")]) == 1
    assert steps(tmp_path / "run") == [(1, 1), (2, 2)]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_full_disk_ends_no_run(tmp_path, monkeypatch, capfd, failing):
    """A TensorBoard log that cannot be written is one line; the next save writes all of it.

    failing: how many saves in a row.
    """
    with entered(tmp_path, "-tensorboard", "true") as run:
        run.epoch(1)
        run.folder.wait()
        for n in range(failing):
            with monkeypatch.context() as full:
                full.setattr(LocalFileSystem, "write", no_space)
                full.setattr(LocalFileSystem, "append", no_space)
                run.epoch(2 + n)
                run.folder.wait()
            line = f"=> epoch {2 + n} could not be saved: No space left on device; "
            said = capfd.readouterr().err.splitlines()
            assert len(said) == 1 and said[0].startswith(line)
        run.epoch(5)
    assert steps(tmp_path) == [(n, n) for n in (1, *range(2, 2 + failing), 5)]


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("clock", [0, 3600, -3600])
@pytest.mark.parametrize("done, kept", [(1, 3), (3, 3), (3, 1)])
def test_no_step_is_there_twice_after_a_resume_and_none_is_lost(
    tmp_path, monkeypatch, done, kept, clock
):
    """The run resumes after epoch `done`; the events of before end with epoch `kept`.

    clock: seconds by which it is set before the resume.
    """

    def logged(last):
        lines = [{"epoch": n, "seconds": n} for n in range(1, last + 1)]
        return log.LogFile("", {}, {"log": [{}, *lines]})

    TensorBoardLog(str(tmp_path)).write(logged(kept))
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + clock)
    resumed = TensorBoardLog(str(tmp_path))
    resumed.write(logged(done))
    assert steps(tmp_path) == [(n, n) for n in range(1, done + 1)]
    resumed.write(logged(4))
    assert steps(tmp_path) == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_a_missing_package_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as if missing
    missing = pytest.raises(InputError, match="pip install tensorboard")
    with missing, entered(tmp_path, "-tensorboard", "true"):
        raise AssertionError("the run has begun")


def test_a_folder_that_tensorboard_cannot_name_is_told_before_training(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(InputError, match="name is UTF-8"), entered(folder, "-tensorboard", "true"):
        raise AssertionError("the run has begun")
