"""-recomputeBN against a restatement that looks at what each batch norm is given, in float64."""

import signal

import pytest
import torch
from support import processes
from support.runs import NET, results, same
from torch import nn

import dataloader
import main
import opts
import train
from engine import batchnorm, metrics
from models.resnet import resnet
from models.slices import set_slices
from parallel.signals import Interrupted
from runtime import terminal
from runtime.errors import InputError
from storage import atomic
from train import setup

CPU = torch.device("cpu")
# replicas and batch: of 35 images, batches of 8, 8, 8, 8, 3; slices of 3, 3, 2; 1, 1, 1 are no use
CASES = [(1, 8, 2), (3, 8, 5), (3, 8, 100)]


def recomputed(data, folder, replicas, size, batches):
    """The running statistics of a fresh net after -recomputeBN, and its trainer and loader."""
    torch.manual_seed(1)
    net = resnet(8, 10, "cifar", "A").double()
    words = f"-netType resnet -dataset cifar10 -depth 8 -data {data} -gen {folder}/gen "
    words += f"-precision double -nGPU {replicas} -batchSize {size} -recomputeBN {batches}"
    opt = opts.parse(words.split())
    trainer = setup(opt, net, CPU)
    loader, _ = dataloader.create(opt, CPU)
    trainer.recompute(3, loader, batches)
    return dict(net.named_buffers()), trainer, loader


def experiment(data, folder):
    """All cases, in however many processes."""
    return {case: recomputed(data, folder, *case)[0] for case in CASES}


def restated(trainer, loader, replicas, batches):
    """Means of means and of unbiased variances over the slices, seen by hooks on every norm."""
    net, seen = trainer.model, {}

    def look(name):
        def hook(module, inputs):
            channels = inputs[0].transpose(0, 1).flatten(1)  # (C, N H W)
            seen.setdefault(f"{name}.running_mean", []).append(channels.mean(1))
            seen.setdefault(f"{name}.running_var", []).append(channels.var(1, correction=1))

        return hook

    layers = {n: m for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    handles = [norm.register_forward_pre_hook(look(name)) for name, norm in layers.items()]
    net.train()
    with torch.no_grad():
        for batch in list(loader.run(3))[:batches]:
            for part in batch.input.tensor_split(replicas):  # the first have one more
                if len(part) > 1:
                    set_slices(net, None)
                    net(part)
    for handle in handles:
        handle.remove()
    return {name: torch.stack(values).mean(0) for name, values in seen.items()}


@pytest.mark.parametrize("case", CASES)
def test_means_over_slices(cifar, tmp_path, case):
    found, trainer, loader = recomputed(cifar, tmp_path, *case)
    found = {name: value.clone() for name, value in found.items()}
    expected = restated(trainer, loader, case[0], case[2])
    assert len(expected) == 14  # resnet8 with shortcut A has seven batch norms
    for name, value in expected.items():
        # sums of some thousand numbers in another order, in float64
        assert torch.allclose(found[name], value, rtol=1e-11, atol=1e-13), name
    for name, value in found.items():
        assert name in expected or int(value) == 0, name  # no batch has been trained on


def test_batch_norms_without_statistics_are_left_alone():
    kinds = {"track_running_stats": False}, {"affine": False}, {"momentum": None}
    net = nn.Sequential(*(nn.BatchNorm2d(3, **kind) for kind in kinds)).double()
    net[1].running_var.fill_(torch.inf)  # after an overflow, say; the estimate replaces it
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    estimate = batchnorm.Estimate(net)
    estimate.add(x, [3, 2])
    estimate.apply()
    assert net[0].running_mean is None and net[2].momentum is None
    for norm in net[1:]:  # of maps that the batch norm before has normalised
        assert norm.running_mean.abs().max() < 1e-12
        assert (norm.running_var - (48 / 47 + 32 / 31) / 2).abs().max() < 1e-4


@pytest.mark.slow
def test_any_number_of_processes(cifar, tmp_path):
    alone = experiment(cifar, tmp_path)
    several = processes.together(3, cifar, str(tmp_path), experiment)
    for case, buffers in alone.items():
        for name, value in buffers.items():
            assert torch.allclose(several[case][name], value, rtol=1e-12, atol=1e-13), (case, name)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, cifar):
    monkeypatch.chdir(tmp_path)

    def run(command):
        main.main([*f"{NET} -manualSeed 2 {command}".split(), "-data", cifar])
        captured = capsys.readouterr()
        return (captured.err + captured.out).splitlines()

    return run


def test_only_statistics_change(run):
    """And those that were tested are saved."""
    run("-nEpochs 2 -save plain")
    lines = run("-nEpochs 2 -save re-estimated -recomputeBN 3")
    plain, other = results("plain", 2)[0], results("re-estimated", 2)[0]
    for name, value in plain.items():
        assert torch.equal(value, other[name]) == ("running" not in name), name
    assert sum(line.startswith(" | Batch norm: [2][") for line in lines) == 3
    again = run("-testOnly true -retrain re-estimated/model_2.pth")
    finished = [line.split("top1")[1] for line in lines if line.startswith(" * Finished epoch")]
    assert next(x for x in again if x.startswith(" * Finished")).split("top1")[1] == finished[1]
    tested = run("-testOnly true -retrain re-estimated/model_2.pth -recomputeBN 3")
    assert sum(line.startswith(" | Batch norm: [0][") for line in tested) == 3


@pytest.mark.parametrize("line", [" | Batch norm: [1][2/3]", " | Test: [1][1/3]", " | Epoch: [2]"])
def test_a_stopped_run_is_the_straight_run(run, monkeypatch, line):
    run("-nEpochs 2 -save straight -recomputeBN 3")

    def say(*words):
        terminal.say(*words)
        if words[0].startswith(line) and not told:
            told.append(signal.raise_signal(signal.SIGTERM))

    told = []
    with monkeypatch.context() as patched:
        for module in (batchnorm, train, metrics):
            patched.setattr(module, "say", say)
        with pytest.raises(Interrupted):
            run("-nEpochs 2 -save stopped -recomputeBN 3")
    assert atomic.load("stopped/latest.pth")["modelFile"] == "inside_epoch.pth"
    lines = run("-resume stopped -save stopped")
    assert any(
        "-recomputeBN 3" in line for line in lines if line.startswith("=> from the checkpoint:")
    )
    same(results("straight", 2), results("stopped", 2))


def test_one_image_a_replica_is_refused(capsys):
    with pytest.raises(SystemExit):
        opts.parse("-dataset cifar10 -depth 20 -batchSize 8 -nGPU 8 -recomputeBN 5".split())
    assert "-recomputeBN needs two images per replica" in capsys.readouterr().err
    trainer = setup(opts.parse("-dataset digits -depth 20".split()), nn.Linear(2, 2), CPU)
    with pytest.raises(InputError, match="no batch norm"):
        trainer.recompute(1, type("Loader", (), {"size": lambda self: 1})(), 1)
