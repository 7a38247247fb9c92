"""Replicas on one, two, three and four processes: Torch7's numbers, and the same in each."""

import functools
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from support import processes, torch7

from parallel import group, guard
from parallel.group import split


@pytest.fixture(scope="module")
def found(cifar, tmp_path_factory):
    """found(count): the answers of processes.experiments in so many processes, each asked once."""
    folder = str(tmp_path_factory.mktemp("groups"))
    answers = {1: processes.experiments(cifar, folder)}

    def found(count):
        if count not in answers:
            answers[count] = processes.together(count, cifar, folder)
        return answers[count]

    return found


@pytest.mark.parametrize("accumulate", ["false", "true"])
@pytest.mark.parametrize("count", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_data_parallel_table(found, count, accumulate):
    """Two recorded steps of nn.DataParallelTable, in float64: a few hundred roundings."""
    answers = found(count)
    with np.load(torch7.REFERENCE / "models" / "dpt.npz") as file:
        recorded = {name: torch.from_numpy(file[name]) for name in file}
    for replicas, n in processes.DPT:
        ours = answers["dpt", replicas, n, accumulate]
        names = [name for name in recorded if name.startswith(f"gpus{replicas}_n{n}/")]
        assert len(names) == len(ours) == 11
        for name in names:
            close = torch.allclose(ours[name.split("/")[1]], recorded[name], 1e-9, 1e-11)
            assert close, (name, count)


@pytest.mark.parametrize("count", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4))])
def test_any_number_of_processes(found, count):
    """8 replicas, two epochs with short last batches; recomputing activations or not."""
    one, several = found(1), found(count)
    for size, optnet in processes.RUNS:
        expected, got = one["run", size, "false"], several["run", size, optnet]
        assert expected.keys() == got.keys()
        for name, value in expected.items():
            assert torch.allclose(got[name], value, rtol=1e-12, atol=1e-12), (name, size)


def test_split():
    for parts, expected in ((1, [(0, 8)]), (3, [(0, 3), (3, 6), (6, 8)])):
        assert [(s.start, s.stop) for s in split(8, parts)] == expected
    assert [(s.start, s.stop) for s in split(2, 3)] == [(0, 1), (1, 2), (2, 2)]


def in_turn(_, folder):
    """What each rank found of rank 0's work, which takes a while, in three calls: all of it."""

    def prepare(made):
        if group.rank() == 0:
            time.sleep(0.3)
            made.touch()
        return made.exists()

    files = [Path(folder) / str(call) for call in range(3)]
    found = [group.rank_0_first(functools.partial(prepare, made)) for made in files]
    return torch.tensor(group.all_gather(found))


@pytest.mark.parametrize("starter", [processes.srun, processes.bare])
def test_every_call_waits_for_rank_0(tmp_path, starter):
    assert processes.together(2, "", str(tmp_path), in_turn, starter).all()


def test_without_local_rank_a_process_that_lost_the_store_says_so(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert group.first_to_fail()
    monkeypatch.setenv("LOCAL_RANK", "1")  # the first process of this machine speaks
    assert not group.first_to_fail()


@pytest.mark.parametrize("port", ["x", "99999"])
def test_an_error_is_printed_where_no_store_can_be(monkeypatch, port):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", port)
    assert group.first_to_fail()


@pytest.mark.parametrize(
    "said, sentence",
    [
        ("Last error:\nFailed to CUDA calloc 64 bytes", "out of memory on the GPU: Failed to CUDA"),
        ("Last error:\nremote process exited", "rank 0 on .* lost the other processes: NCCL error"),
    ],
)
def test_nccl_without_memory_is_no_lost_peer(said, sentence, monkeypatch):
    monkeypatch.setattr(guard.launch, "joined", lambda: True)
    monkeypatch.setattr(guard.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(group, "rank", lambda: 0)
    monkeypatch.setattr(group, "first_to_fail", lambda: True)
    message, _ = guard._failure(dist.DistBackendError(f"NCCL error: unhandled cuda error\n{said}"))
    assert re.match(sentence, message)
