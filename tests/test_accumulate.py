"""-accumulate true: replica slices one after another take the step of all at once, in float64."""

import contextlib
import gc
import io
import re
import types
import weakref

import pytest
import torch
from support import processes
from support.runs import NET, difference, results
from torch import nn

import main
import opts
from dataloader import LAYOUT, Batch
from models.blocks import set_recompute
from models.resnet import resnet
from parallel import group
from parallel.group import split, split_sizes
from runtime.errors import InputError
from train import setup

CPU = torch.device("cpu")
BATCHES = (16, 13, 2)  # 8 replicas have slices of 2, of 2 and 1, and some have none
CASES = [(1, ""), (2, ""), (3, ""), (8, ""), (8, "-optnet true")]  # replicas, options


class Batches:
    """An epoch of random images of 8x8 pixels: this rank's part of batches of these sizes."""

    crops = 1

    def __init__(self, replicas, sizes=BATCHES):
        self.replicas, self.sizes = replicas, sizes

    def size(self):
        return len(self.sizes)

    def run(self, epoch, start=0):
        for n in self.sizes[start:]:
            generator = torch.Generator().manual_seed(100 * epoch + n)
            input = torch.randn(n, 3, 8, 8, generator=generator, dtype=torch.float64)
            target = torch.randint(10, (n,), generator=generator)
            sizes = split_sizes(n, self.replicas)
            slices = [sizes[part] for part in split(self.replicas, group.world_size())]
            begin = sum(map(sum, slices[: group.rank()]))
            own = slice(begin, begin + sum(slices[group.rank()]))
            image = input[own] if len(target[own]) else torch.zeros_like(input[:1])
            yield Batch(image.contiguous(memory_format=LAYOUT), target[own], slices)


def trainer(words, replicas, precision="double"):
    command = f"-netType resnet -dataset cifar10 -depth 8 -LR 0.05 -nGPU {replicas} {words}"
    opt = opts.parse([*command.split(), "-precision", precision])
    torch.manual_seed(3)
    model = resnet(8, 10, "cifar", "A").to(memory_format=LAYOUT)
    set_recompute(model, opt.optnet)
    return setup(opt, model.double() if precision == "double" else model, CPU)


def trained(words, replicas, epochs=(1, 2), state=None, batches=None):
    """(printed lines without their times, means, tensors by name, trainer) of some epochs."""
    ours, printed = trainer(words, replicas), io.StringIO()
    exchanges = count_exchanges(ours)
    if state is not None:
        ours.model.load_state_dict(state.model.state_dict())
        ours.load_state(state.state())
    batches = batches or Batches(replicas)
    with contextlib.redirect_stdout(printed):
        means = [figures(ours.train(e, batches), ours.test(e, batches)) for e in epochs]
    tensors = {f"m {name}": value for name, value in ours.state()["momentum"].items()}
    tensors |= ours.model.state_dict()
    lines = re.sub(r"(Time|Data) +[\d.]+", r"\1", printed.getvalue()).splitlines()
    assert group.world_size() == 1 or len(exchanges) == len(epochs) * batches.size()
    return types.SimpleNamespace(lines=lines, means=means, tensors=tensors, trainer=ours)


def figures(*metrics):
    return tuple(number for m in metrics for number in (m.top1, m.top5, m.mean_loss))


def count_exchanges(trainer):
    """A list that grows whenever the processes average their gradients: all are in one bucket."""
    calls = []

    def hook(_, bucket):
        calls.append(bucket.index())
        done = torch.futures.Future()
        done.set_result(group.all_reduce(bucket.buffer().div_(group.world_size())))
        return done

    if group.world_size() > 1:
        trainer.parallel.register_comm_hook(None, hook)
    return calls


def differences(one, other):
    """The largest difference of parameters, momentum, running statistics, printed means."""
    assert one.lines == other.lines and one.tensors.keys() == other.tensors.keys()
    found = dict.fromkeys(("parameters", "momentum", "statistics", "means"), 0.0)
    for name, tensor in one.tensors.items():
        kind = "momentum" if name.startswith("m ") else "parameters"
        kind = "statistics" if "running" in name or "tracked" in name else kind
        found[kind] = max(found[kind], float((tensor - other.tensors[name]).abs().max()))
    pairs = zip(sum(one.means, ()), sum(other.means, ()))
    found["means"] = max(abs(ours - theirs) for ours, theirs in pairs)
    return found


def experiment(data=None, folder=None):
    """{(replicas, options): the largest differences from one pass} on these processes."""
    found = {}
    for replicas, words in CASES:
        together = trained(words, replicas)
        apart = trained(f"{words} -accumulate true", replicas)
        assert float(together.tensors["m fc.weight"].abs().max()) > 1e-3
        found[replicas, words] = differences(together, apart)
    return found


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_equal_to_one_pass(tmp_path, count):
    """Two epochs, batches that do not divide, slices of one sample, tests in between.

    Two processes exchange their gradients once an iteration.
    """
    found = experiment() if count == 1 else processes.together(2, "", str(tmp_path), experiment)
    assert len(found) == len(CASES)
    for case, largest in found.items():
        assert max(largest.values()) < 1e-12, (case, largest)


@pytest.mark.parametrize("order", [("", "-accumulate true"), ("-accumulate true", "")])
def test_resumed_the_other_way(order):
    """A checkpoint of either way goes on in the other."""
    straight = trained("", 3, (1, 2, 3))
    first = trained(order[0], 3, (1, 2))
    rest = trained(order[1], 3, (3,), state=first.trainer)
    rest.lines, rest.means = first.lines + rest.lines, first.means + rest.means
    assert max(differences(straight, rest).values()) < 1e-12


def test_the_option_is_the_runs(cifar, tmp_path, monkeypatch, capsys):
    """main.py's own runs: from the command line, and from a checkpoint that it is resumed from."""
    monkeypatch.chdir(tmp_path)
    run = f"{NET} -nGPU 3 -precision double -data {cifar} -nEpochs"
    main.main([*f"{run} 2 -save together".split()])
    main.main([*f"{run} 1 -accumulate true -save apart".split()])
    sizes = seen(monkeypatch)
    main.main("-resume apart -nEpochs 2".split())
    assert "-accumulate true" in capsys.readouterr().err
    assert set(sizes) == {3, 2, 1}  # of batches of 8 and 3
    together, apart = results("together", 2), results("apart", 2)
    assert difference(together, apart) < 1e-12 and together[1] == apart[1]


def seen(monkeypatch):
    """The sizes of all inputs of a net in training, in order: a list that fills."""
    sizes, features = [], resnet(8, 10, "cifar", "A").__class__.features

    def noted(self, x):
        if self.training:
            sizes.append(len(x))
        return features(self, x)

    monkeypatch.setattr("models.blocks.Net.features", noted)
    return sizes


def test_slices_go_one_after_another(monkeypatch):
    """The first comes last: one-sample slices are normalised by the statistics before the batch."""
    sizes = seen(monkeypatch)
    ours = trainer("-accumulate true", 8)
    (batch,) = Batches(8, [13]).run(1)
    ours.train(1, Batches(8, [13]))
    assert batch.slices == [[2, 2, 2, 2, 2, 1, 1, 1]]
    assert sizes == [2, 2, 2, 2, 1, 1, 1, 2]


def test_one_step_of_the_loss_scaler():
    """-precision half: a step counts once, and an overflow in any slice leaves all of it out."""
    ours = trainer("-accumulate true", 3, "half")
    batches = Batches(3, [9])
    ours.precision.dtype, scaler = torch.float32, ours.scaler
    inputs = [b._replace(input=b.input.float()) for b in batches.run(1)]
    for _ in range(2):
        ours._step(inputs[0])
    assert scaler._growth_tracker.item() == 2
    before = [parameter.clone() for parameter in ours.model.parameters()]
    image = inputs[0].input.clone()
    image[4] *= 1e6  # of the second slice
    ours._step(inputs[0]._replace(input=image))
    assert all(map(torch.equal, before, ours.model.parameters()))
    assert scaler.get_scale() == 2.0**15  # halved once


class Small(nn.Module):
    """A net whose memory holds `most` images: for more it asks for a pebibyte, halfway through."""

    def __init__(self, net, most):
        super().__init__()
        self.net, self.most, self.kept = net, most, []

    def forward(self, x):
        activations = self.net.conv1(x)
        alive = [weak for weak in self.kept if weak() is not None]
        self.kept.append(weakref.ref(activations))
        output = self.net(x)  # moves the running statistics
        if len(x) > self.most:
            torch.empty(2**50, dtype=torch.uint8)
        assert not alive, "the activations of the pass that failed are still there"
        return output


def fitting(words, most):
    ours = trainer(words, 3)
    ours.model = ours.parallel = ours.compiled = Small(ours.model, most)
    return ours


def test_a_first_iteration_out_of_memory_goes_on_slice_by_slice(capsys):
    """The run says so and is the same; nothing of the pass that failed stays."""
    gc.disable()  # what only the garbage collector frees would not be free in time
    try:
        ours, expected = fitting("", 6), trainer("", 3)
        ours.train(1, Batches(3, [16, 9]))
    finally:
        gc.enable()
    lines = capsys.readouterr().err.splitlines()
    (error,) = (line for line in lines if "replicas in 1 process" not in line)
    assert error.startswith("=> out of memory on the CPU: ")
    assert "an input of 16 x 3 x 8 x 8: going on with -accumulate true" in error
    expected.train(1, Batches(3, [16, 9]))
    for name, tensor in expected.model.state_dict().items():
        assert torch.allclose(ours.model.net.state_dict()[name], tensor, 1e-12, 1e-12), name


@pytest.mark.parametrize("words, sizes", [("-accumulate true", [16]), ("", [9, 16]), ("", [16])])
def test_what_does_not_fit_that_way_either_is_one_sentence(words, sizes):
    """Slices that are too large, and a later iteration, for which the sentence names the option."""
    with pytest.raises(InputError, match="out of memory on the CPU: .*give ") as stop:
        fitting(words, 4 if len(sizes) == 1 else 9).train(1, Batches(3, sizes))
    named = "give -accumulate true, a smaller -batchSize" in str(stop.value)
    assert named == (len(sizes) == 2)


def compiled(data=None, folder=None):
    """As `experiment`, the slices compiled; on one process with -optnet true as well."""
    alone, found = group.world_size() == 1, {}
    for words in ("", "-optnet true") if alone else ("",):
        batches = Batches(3) if alone else Batches(3, [6])  # each size is compiled
        together = trained(words, 3, (1,), batches=batches)
        apart = trained(f"{words} -accumulate true -compile true", 3, (1,), batches=batches)
        found[words] = differences(together, apart)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_compiled(tmp_path, count):
    found = compiled() if count == 1 else processes.together(2, "", str(tmp_path), compiled)
    for words, largest in found.items():
        assert max(largest.values()) < 1e-12, (words, largest)
