"""Replicas on one, two, three and four processes: Torch7's numbers, and the same in each."""

import group
import numpy as np
import pytest
import torch
import torch7

import distributed


@pytest.fixture(scope="module")
def found(cifar, tmp_path_factory):
    """found(count): the answers of group.experiments in so many processes, each asked once."""
    folder = str(tmp_path_factory.mktemp("groups"))
    answers = {1: group.experiments(cifar, folder)}

    def found(count):
        if count not in answers:
            answers[count] = group.together(count, cifar, folder)
        return answers[count]

    return found


@pytest.mark.parametrize("count", [1, 2, 3])
def test_data_parallel_table(found, count):
    """Two recorded steps of nn.DataParallelTable, in float64: a few hundred roundings."""
    answers = found(count)
    with np.load(torch7.REFERENCE / "models" / "dpt.npz") as file:
        recorded = {name: torch.from_numpy(file[name]) for name in file}
    for replicas, n in group.DPT:
        ours = answers["dpt", replicas, n]
        names = [name for name in recorded if name.startswith(f"gpus{replicas}_n{n}/")]
        assert len(names) == len(ours) == 11
        for name in names:
            close = torch.allclose(ours[name.split("/")[1]], recorded[name], 1e-9, 1e-11)
            assert close, (name, count)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_any_number_of_processes(found, count):
    """8 replicas, two epochs with short last batches; recomputing activations or not."""
    one, several = found(1), found(count)
    for size, optnet in group.RUNS:
        expected, got = one["run", size, "false"], several["run", size, optnet]
        assert expected.keys() == got.keys()
        for name, value in expected.items():
            assert torch.allclose(got[name], value, rtol=1e-12, atol=1e-12), (name, size)


def test_shares(monkeypatch):
    for size, expected in ((1, [(0, 8)]), (3, [(0, 3), (3, 6), (6, 8)])):
        monkeypatch.setattr(distributed, "size", lambda size=size: size)
        assert [(s.start, s.stop) for s in distributed.shares(8)] == expected
    assert [(s.start, s.stop) for s in distributed.shares(2)] == [(0, 1), (1, 2), (2, 2)]
