"""The line on an epoch that waited for data, against the arithmetic of its sentence."""

import re
import types

import pytest

import dataloader
from datasets import workers
from engine.loop import OFTEN


def numbers(line):
    return [int(n) for n in re.findall(r"\d+", line)]


def test_what_more_workers_would_do():
    """2 workers, 100 s of which 60 wait: reading takes 200 s of a worker, the steps take 40 s."""
    line = workers.advice(3, 2, 6, 100.0, 60.0)
    assert numbers(line) == [3, 60, 100, 6, 5, 40]  # 5 workers read in 40 s
    assert line.startswith("=> epoch 3 waited for data for 60 % of 100 s, and 6 cores are idle")
    assert numbers(workers.advice(3, 2, 2, 100.0, 60.0)) == [3, 60, 100, 2, 4, 50]  # no more cores
    # without workers the main process reads, 80 s of 100, while nothing is trained
    assert numbers(workers.advice(1, 0, 1, 100.0, 80.0)) == [1, 80, 100, 1, 1, 80]
    assert numbers(workers.advice(1, 0, 9, 100.0, 80.0)) == [1, 80, 100, 9, 4, 20]


@pytest.mark.parametrize(
    "idle, seconds, waited",
    [(0, 100.0, 60.0), (6, 100.0, 24.0), (6, 9.0, 6.0), (-3, 100.0, 60.0), (6, 0.0, 0.0)],
)
def test_no_line_without_cores_or_waiting(idle, seconds, waited):
    """Nor of an epoch of seconds, which waits for its workers to start."""
    assert workers.advice(3, 2, idle, seconds, waited) is None


@pytest.mark.parametrize(("rate", "trained", "heard"), [(2200, 5800, True), (2200, 2400, False)])
def test_a_fast_gpu_hears_of_it_at_once(rate, trained, heard):
    """Images a second that 2 workers read and a GPU trains; the workers take 3 s to start."""
    images = 256 * OFTEN
    seconds, steps = images / rate + 3, images / trained
    assert bool(workers.advice(1, 2, 6, seconds, seconds - steps)) == heard


@pytest.mark.parametrize("in_memory", [False, True])
def test_once_a_run_on_stderr(in_memory, monkeypatch, capsys):
    monkeypatch.setattr("runtime.process.cores", lambda: 9)
    loader = types.SimpleNamespace(in_memory=in_memory, advised=None)
    loader.threads = 2
    for epoch, waited in ((1, 10.0), (2, 60.0), (3, 60.0)):
        dataloader.DataLoader.report_wait(loader, epoch, 100.0, waited)
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == (not in_memory)
    assert in_memory or error.startswith("=> epoch 2 waited for data for 60 %")
    assert in_memory or "6 cores are idle: -nThreads 5 would " in error
