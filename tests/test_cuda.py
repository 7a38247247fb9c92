"""On a GPU (`pytest --cuda`): the CPU's results, every precision, a resume, NCCL, its memory.

`pytest -m cuda` runs what it can of them on the CPU.
"""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from support.detectors import detector, images
from support.runs import ROOT, results, same

import main
import models
import opts
from dataloader import LAYOUT, Batch
from engine import metrics
from models.blocks import set_recompute
from models.resnet import resnet
from models.resnext import resnext
from parallel import signals
from parallel.group import split_sizes
from train import setup

pytestmark = pytest.mark.cuda
CPU = torch.device("cpu")
GPU = torch.device("cuda", 0) if torch.cuda.is_available() else CPU
NETS = {
    "resnet": lambda: resnet(8, 10, "cifar", "A"),
    "resnext": lambda: resnext(11, 4, 4, 10, "cifar"),
}
DIGITS = "-dataset digits -depth 11 -cardinality 4 -baseWidth 4 -cudnn deterministic -manualSeed 1"


class Batches:
    """An epoch of random images, the same on every device and in every precision."""

    crops = 1

    def __init__(self, device, replicas, dtype=torch.float32):
        self.device, self.replicas, self.dtype = device, replicas, dtype

    def size(self):
        return 4

    def run(self, epoch, start=0):
        for n in (32, 32, 32, 19)[start:]:
            generator = torch.Generator().manual_seed(100 * epoch + n)
            input = torch.randn(n, 3, 16, 16, generator=generator).to(self.device, self.dtype)
            target = torch.randint(10, (n,), generator=generator).to(self.device)
            slices = [split_sizes(n, self.replicas)]
            yield Batch(input.contiguous(memory_format=LAYOUT), target, slices)


def trained(device, words="", replicas=1, net="resnet"):
    """Parameters, statistics and momentum after two epochs, float64 on the CPU; the mean losses."""
    command = f"-netType resnet -dataset cifar10 -depth 8 -LR 0.02 -nGPU {replicas} {words}"
    opt = opts.parse(command.split())
    models.set_backend(opt.cudnn, opt.precision)
    dtype = torch.float64 if opt.precision == "double" else torch.float32
    torch.manual_seed(3)
    model = NETS[net]().to(device, dtype, memory_format=LAYOUT)
    set_recompute(model, opt.optnet)
    trainer = setup(opt, model, device)
    batches = Batches(device, replicas, dtype)
    with contextlib.redirect_stdout(io.StringIO()):
        losses = [trainer.train(epoch, batches).mean_loss for epoch in (1, 2)]
        trainer.test(2, batches)
    found = {**model.state_dict(), **{f"m {k}": v for k, v in trainer.state()["momentum"].items()}}
    return {name: value.to(CPU, torch.float64) for name, value in found.items()}, losses


def far(one, other):
    """The largest distance of two tensors of a name, relative to the second's length."""
    distances = [(one[k] - other[k]).norm() / (1e-3 + other[k].norm()) for k in other]
    return float(max(distances))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(
    "words, replicas", [("", 1), ("", 3), ("-accumulate true", 3), ("-optnet true", 3)]
)
def test_the_cpus_results(net, words, replicas):
    expected, losses = trained(CPU, "-precision double", replicas, net)
    found, found_losses = trained(GPU, f"-precision double {words}", replicas, net)
    assert far(found, expected) < 1e-9
    assert found_losses == pytest.approx(losses, rel=1e-9)


@pytest.mark.parametrize(
    "precision, tolerance",
    # roundings of 2^-24, 2^-11 and 2^-8 of the numbers, through eight steps
    [("single", 1e-3), ("tf32", 5e-2), ("half", 5e-2), ("bfloat16", 0.3)],
)
@pytest.mark.parametrize("compile", ["false", "true"])
def test_precisions(precision, tolerance, compile):
    expected, losses = trained(CPU, "-precision double")
    found, found_losses = trained(GPU, f"-precision {precision} -compile {compile}")
    assert all(value.isfinite().all() for value in found.values())
    if precision != "half":  # its first steps may overflow, and are then left out
        assert far(found, expected) < tolerance
        assert found_losses == pytest.approx(losses, rel=tolerance)


@pytest.mark.parametrize("precision", ["single", "half", "bfloat16", "double"])
@pytest.mark.parametrize("net", NETS)
def test_a_cuda_graph(net, precision):
    """To the last bit, with kernels that are reproducible."""
    words = f"-cudnn deterministic -precision {precision}"
    plain, graph = (trained(GPU, words + more, 2, net) for more in ("", " -cudaGraph true"))
    assert plain[1] == graph[1]
    for name in plain[0]:
        assert torch.equal(plain[0][name], graph[0][name]), name


@pytest.mark.parametrize("place", [3, 9, 16])
def test_a_signal_and_a_resume(tmp_path, monkeypatch, place):
    """To the last bit, with kernels that are reproducible."""
    monkeypatch.chdir(tmp_path)
    main.main(f"{DIGITS} -nEpochs 2 -save straight".split())
    push, count = metrics.MetricQueue.push, 0

    def counting(*args):
        nonlocal count
        count += 1
        if count == place:
            os.kill(os.getpid(), signal.SIGTERM)
        return push(*args)

    with monkeypatch.context() as patch:
        patch.setattr(metrics.MetricQueue, "push", counting)
        with pytest.raises(signals.Interrupted):
            main.main(f"{DIGITS} -nEpochs 2 -save stopped".split())
    main.main("-resume stopped".split())
    same(results("straight", 2), results("stopped", 2))


def test_torchrun_with_nccl(tmp_path):
    """One process in a group: the run of a process without one."""
    command = f"{DIGITS} -nEpochs 1"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1"]
    for before, save in (([sys.executable], "alone"), (launcher, "group")):
        program = [*before, os.path.join(ROOT, "main.py"), *command.split(), "-save", save]
        subprocess.run(program, cwd=tmp_path, check=True, timeout=300)
    same(results(tmp_path / "alone", 1), results(tmp_path / "group", 1))


def test_detections():
    """Boxes of a detector, in float64."""
    ours, (inputs, _) = detector().double().eval(), images((70, 96), (96, 60))
    with torch.no_grad():
        expected = ours.detections(inputs)
        found = ours.to(GPU).detections([image.to(GPU) for image in inputs])
    for one, other in zip(found, expected):
        for name in ("boxes", "scores", "labels"):
            torch.testing.assert_close(one[name].cpu(), other[name], rtol=1e-9, atol=1e-7)


def test_what_does_not_fit_goes_on_slice_by_slice(capsys):
    """Between the memory of the slices together and that of one after another."""

    def step(words):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        opt = opts.parse(f"-netType resnet -dataset cifar10 -depth 20 -nGPU 8 {words}".split())
        torch.manual_seed(1)
        model = resnet(18, 10).to(GPU, memory_format=LAYOUT).train()
        trainer = setup(opt, model, GPU)
        input = torch.randn(64, 3, 224, 224).to(GPU, memory_format=LAYOUT)
        target = torch.arange(64, device=GPU) % 10
        loss = trainer._step_that_fits(Batch(input, target, [split_sizes(64, 8)]))[1]
        return float(loss), torch.cuda.max_memory_allocated()

    (together, most), (apart, least) = step(""), step("-accumulate true")
    assert apart == pytest.approx(together, rel=1e-3) and least < most / 2
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((least + most) / 2 / total)
    try:
        loss, _ = step("")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    error = capsys.readouterr().err
    assert re.search(r"=> out of memory on cuda:0 \(.*: going on with -accumulate true", error)
    assert loss == pytest.approx(together, rel=1e-3)
