"""The trainer against the original's: schedule, optimizer, and two recorded epochs of batches."""

import json
import logging
import os
import re
import types

import numpy as np
import pytest
import torch
from support.torch7_random import initialise
from torch import nn

import opts
from dataloader import LAYOUT, Batch
from models import compiled as compiling
from models.blocks import set_recompute
from models.resnet import resnet
from parallel.group import split_sizes
from runtime.errors import InputError
from train import Trainer, criterion, learning_rate, optimizer, setup

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "reference")
CPU = torch.device("cpu")


@pytest.mark.parametrize("family", ["resnext", "resnet"])
def test_learning_rate(family):
    name = {"resnext": "resnext", "resnet": "fbresnet"}[family]
    with open(os.path.join(HERE, "misc", f"learningRate_{name}.json")) as file:
        cases = json.load(file)
    assert len(cases) == 66
    for case in cases:
        stem = "imagenet" if case["dataset"] == "imagenet" else "cifar"
        drops = opts.RECIPES[family, stem][2]
        opt = types.SimpleNamespace(LR=case["LR"], nEpochs=case["nEpochs"], drops=drops, warmup=0)
        assert [learning_rate(opt, epoch) for epoch in case["epochs"]] == case["lr"]


def test_given_steps_take_the_place_of_the_recipe():
    opt = opts.parse("-dataset cifar10 -depth 20 -LR 1 -LRSteps 150,225".split())
    rates = [learning_rate(opt, epoch) for epoch in (149, 150, 224, 225)]
    assert rates == pytest.approx([1, 0.1, 0.1, 0.01], rel=1e-12)


class One(nn.Module):
    """A model that is one vector of parameters."""

    def __init__(self, values):
        super().__init__()
        self.x = nn.Parameter(values)


@pytest.mark.parametrize("name", ["original", "original_wd1e-4", "no_wd"])
def test_sgd_as_optim_sgd(name):
    arrays = np.load(os.path.join(HERE, "misc", "sgd_double.npz"))
    with open(os.path.join(HERE, "misc", "misc.json")) as file:
        configs = {case["config"]["name"]: case["config"] for case in json.load(file)["sgd"]}
    values = [configs[name][option] for option in ("momentum", "weightDecay")]

    def recorded(what, step):
        return torch.from_numpy(arrays[f"DoubleTensor/{name}/{what}{step}"])

    model = One(recorded("x", 0))
    sgd, x = optimizer(model, 0.1, *values), model.x
    for step in range(1, 7):
        sgd.param_groups[0]["lr"] = 0.1 if step < 4 else 0.01
        x.grad = recorded("g", step)
        sgd.step()
        momentum = sgd.state[x]["momentum_buffer"]
        # the same products in another order: a few roundings of float64
        assert torch.allclose(x.detach(), recorded("x", step), rtol=1e-14, atol=1e-15)
        assert torch.allclose(momentum, recorded("dfdx", step), rtol=1e-14, atol=1e-15)


def batch(input, target, replicas=1):
    return Batch(input, target, [split_sizes(len(target), replicas)])


class Recorded:
    """The batches that the original's trainer saw, in its order."""

    crops = 1

    def __init__(self, arrays, kind, dtype):
        self.arrays, self.kind, self.dtype = arrays, kind, dtype

    def names(self, epoch):
        ending = f"_{self.kind}{epoch}_input"
        return sorted(name[: -len("_input")] for name in self.arrays if name.endswith(ending))

    def size(self):
        return len(self.names(1))

    def run(self, epoch, start):
        for name in self.names(epoch)[start:]:
            input = torch.from_numpy(self.arrays[name + "_input"]).to(self.dtype)
            yield batch(input, torch.from_numpy(self.arrays[name + "_target"]).long() - 1)


def test_two_recorded_epochs(capsys):
    """ResNet-20 from Torch's seed 7 at rate 0.1: main.lua's own run, line by line.

    The net is chaotic at this rate (the loss passes 12): rounding grows about a thousandfold a
    step, and our own float64 run strays from our float32 run as far as the recorded one does.
    Hence the lines agree to the letter at first, and less and less afterwards.
    """
    arrays = np.load(os.path.join(HERE, "mainrun", "e2e_fbresnet20_cifar10.npz"))
    opt = opts.parse("-netType resnet -dataset cifar10 -depth 20 -batchSize 8 -nEpochs 2".split())
    model = initialise(resnet(depth=20, classes=10, stem="cifar", shortcut="A"), 7)
    trainer = setup(opt, model, CPU)
    for epoch in (1, 2):
        found = trainer.train(epoch, Recorded(arrays, "train", torch.float32))
        trainer.test(epoch, Recorded(arrays, "test", torch.float32))
        if epoch == 1:
            result = [found.top1, found.top5, found.mean_loss]
            assert result == pytest.approx(arrays["train1_result"], rel=3e-3)
    ours = capsys.readouterr().out.splitlines()
    with open(os.path.join(HERE, "mainrun", "e2e_fbresnet20_cifar10.txt")) as file:
        theirs = [line for line in file.read().splitlines() if line.startswith((" | E", " | T"))]
    ours = [line for line in ours if line.startswith(" | ")]
    assert len(ours) == len(theirs) == 16
    assert [timeless(line) for line in ours[:2]] == [timeless(line) for line in theirs[:2]]
    for line, original, tolerance in zip(ours, theirs, [1e-6, 1e-6, 1e-3, 1e-3, 2e-2]):
        assert error(line) == pytest.approx(error(original), rel=tolerance)
        assert line.split("top1")[1] == original.split("top1")[1]


def timeless(line):
    return re.sub(r"(Time|Data) +[\d.]+", r"\1", line)


def error(line):
    return float(re.search(r"Err +([\d.]+)", line)[1])


class Fixed:
    """The same few batches in every epoch."""

    crops = 1

    def __init__(self, *batches):
        self.batches = batches

    def size(self):
        return len(self.batches)

    def run(self, epoch, start):
        return iter(self.batches[start:])


def small(precision="single", replicas=1, data=(), **changed):
    opt = opts.parse("-netType resnet -dataset cifar10 -depth 8 -LR 0.05".split())
    opt = opt.replaced(precision=precision, nGPU=replicas, **changed)
    torch.manual_seed(3)
    model = resnet(depth=8, classes=10, stem="cifar", shortcut="A").to(memory_format=LAYOUT)
    model = model.double() if precision == "double" else model
    return setup(opt, model, CPU, data=data)


def random_batch(n, dtype=torch.float32):
    generator = torch.Generator().manual_seed(n)
    input = torch.randn(n, 3, 32, 32, generator=generator, dtype=torch.float64).to(dtype)
    return batch(input, torch.randint(10, (n,), generator=generator))


def test_a_loss_that_is_not_finite_ends_the_run():
    trainer = small(LR=1e30)
    with pytest.raises(InputError, match=r"nan|inf.*epoch 4, iteration [23] of 3") as stop:
        trainer.train(4, Fixed(*[random_batch(6)] * 3))
    assert "-LR" in str(stop.value)


@pytest.mark.parametrize("precision", ["half", "bfloat16", "tf32"])
def test_reduced_precision_stays_near_single(precision):
    losses = {}
    for name in ("single", precision):
        losses[name] = small(name, LR=0.01).train(1, Fixed(*[random_batch(16)] * 4)).mean_loss
    # bfloat16 keeps 8 bits: products are right to 0.4 %, a loss near 2 to a few per cent
    assert losses[precision] == pytest.approx(losses["single"], rel=3e-2)


def test_a_first_step_that_overflows_is_left_out():
    """-precision half: it changes neither the weights nor, as fused SGD did, the momentum."""
    state = small("half").state()
    overflows = {"momentum": state["momentum"], "scaler": {**state["scaler"], "scale": 2.0**120}}
    skipped, straight = small("half"), small("half")
    torch.use_deterministic_algorithms(True)  # what is not set to anything is nan then
    try:
        skipped.load_state(overflows)
        skipped.train(1, Fixed(random_batch(6)))
        skipped.load_state({**overflows, "scaler": straight.scaler.state_dict()})
        for trainer in (skipped, straight):
            trainer.model.load_state_dict(small().model.state_dict())  # running statistics, too
            trainer.train(2, Fixed(random_batch(7)))
    finally:
        torch.use_deterministic_algorithms(False)
    weights = (trainer.model.state_dict().values() for trainer in (skipped, straight))
    assert all(torch.equal(one, other) for one, other in zip(*weights))


def test_replicas_are_slices_with_statistics_of_their_own():
    """nGPU 3 on a batch of 8 = the mean gradient of slices 3, 3, 2 run one by one, float64."""
    input, target, *_ = random_batch(8, torch.float64)
    together = small("double", 3)
    output, loss = together._step(batch(input, target, 3))
    reference = small("double", 1).model.train()
    total = 0.0
    start = 0
    for length in (3, 3, 2):
        part = slice(start, start + length)
        start += length
        part_loss = nn.functional.cross_entropy(reference(input[part]), target[part])
        (part_loss * length / 8).backward()
        total += part_loss.item() * length / 8
    assert float(loss) / 8 == pytest.approx(total, rel=1e-13)
    for (name, ours), theirs in zip(together.model.named_parameters(), reference.parameters()):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-10, atol=1e-13), name


@pytest.mark.slow
@pytest.mark.parametrize("optnet", [False, True])
def test_compiled_is_the_same_training(optnet):
    """Replicas, slices of one sample in a short last batch, the test; in float64."""
    batches = Fixed(
        *[random_batch(n, torch.float64)._replace(slices=[split_sizes(n, 3)]) for n in (8, 8, 4)]
    )
    found = {}
    for compiled in (False, True):
        trainer = small("double", 3, compile=compiled)
        set_recompute(trainer.model, optnet)
        train, test = trainer.train(1, batches), trainer.test(1, batches)
        found[compiled] = [train.mean_loss, train.top1, test.top1, test.top5]
        found[compiled] += [tensor.clone() for tensor in trainer.model.state_dict().values()]
    for ours, theirs in zip(found[True], found[False]):
        # only the order of sums differs
        assert torch.allclose(torch.as_tensor(ours), torch.as_tensor(theirs), rtol=1e-9, atol=1e-12)


def test_a_cuda_graph_needs_cuda():
    with pytest.raises(InputError, match="-cudaGraph true needs a CUDA device"):
        small(cudaGraph=True)


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match="no-such-compiler"):
        small(compile=True)


@pytest.mark.parametrize(
    "there, variable, missing",
    [((), "", "gcc or clang"), (("clang",), "", None), (("gcc",), "", None)]
    + [(("gcc",), "no-such-cc", "no-such-cc"), (("icx",), "icx", None)],
)
def test_on_cuda_triton_needs_a_c_compiler(monkeypatch, there, variable, missing):
    monkeypatch.setattr("shutil.which", lambda name: name if name in there else None)
    monkeypatch.setattr("torch.compile", lambda model, dynamic: "compiled")
    monkeypatch.setenv("CC", variable)
    if missing is None:
        assert compiling.compiled(None, torch.device("cuda")) == "compiled"
        return
    with pytest.raises(InputError, match=f"a C compiler on CUDA, but there is no {missing}: "):
        compiling.compiled(None, torch.device("cuda"))


def test_of_torchs_lines_on_compiling_only_two_are_left_out(monkeypatch, caplog):
    monkeypatch.setattr("torch.compile", lambda model, dynamic: model)
    monkeypatch.setattr("shutil.which", lambda name: name)
    for _ in range(2):
        compiling.compiled(None, torch.device("cpu"))
    with caplog.at_level("WARNING"):
        for name, beginning in compiling.NOISE.items():
            logger = logging.getLogger(name)
            monkeypatch.setattr(logger, "propagate", True)
            logger.addHandler(caplog.handler)
            logger.warning(beginning + "%s", "of no use")
            logger.warning("another line of %s", name)
            logger.removeHandler(caplog.handler)
            assert len(logger.filters) == 1
    assert {record.getMessage().split(" of ")[0] for record in caplog.records} == {"another line"}


def test_momentum_in_another_layout():
    """As in Torch7's files: fused SGD would take its numbers in the order of the memory."""
    first = small()
    first.train(1, Fixed(random_batch(6)))
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        trainer = small()
        trainer.model.load_state_dict(first.model.state_dict())
        state = first.state()
        for name, buffer in state["momentum"].items():
            if buffer.dim() == 4:
                state["momentum"][name] = buffer.clone(memory_format=layout)
        trainer.load_state(state)
        trainer.train(2, Fixed(random_batch(6)))
        found.append(trainer.model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_state_goes_round():
    first = small()
    first.train(1, Fixed(random_batch(6)))
    second = small()
    second.load_state(first.state())
    for ours, theirs in zip(first.state()["momentum"].items(), second.state()["momentum"].items()):
        assert ours[0] == theirs[0] and torch.equal(ours[1], theirs[1])
    state = first.state()
    state["momentum"]["fc.weight"] = torch.zeros(3, 64)
    with pytest.raises(InputError, match="fc.weight"):
        small().load_state(state)


SUMS = {"done": 1, "seen": 6, "wrong1": 1, "wrong5": 0, "loss": 2.0}


def inside(**changed):
    """A state inside the test of epoch 2; `changed`: fields of its test's sums."""
    trainer = small()
    sums = {"train": SUMS, "test": {**SUMS, **changed}}
    return {**trainer.state(), "epoch": 1, "position": {"epoch": 2, "order": trainer.order, **sums}}


def test_a_test_of_other_sizes_begins_again(capsys):
    trainer = small()
    trainer.load_state(inside())
    assert trainer.position.epoch == 2 and trainer.position.test.seen == 6
    earlier = inside()  # before there was the option
    del earlier["position"]["order"]["testPool"]
    trainer = small()
    trainer.load_state(earlier)
    assert trainer.position.epoch == 2 and trainer.position.test.seen == 6
    assert capsys.readouterr().err == ""
    for sizes in ({"testScale": 300}, {"testCrop": 200}):
        trainer = small(**sizes)
        trainer.load_state(inside())
        assert trainer.position.epoch is None
        assert "=> epoch 2 begins again, because" in capsys.readouterr().err


@pytest.mark.parametrize("data, keeps", [([1, 3], True), ([4, 2], False), ([4, 3], False)])
def test_other_test_images_do_not_undo_the_training(data, keeps, capsys):
    """The message of an unreadable image says: remove it. What was trained stays so."""
    for trained in (True, False):
        state = {**inside(), "data": [1, 2]}
        state["position"]["trained"] = trained
        trainer = small(data=data)
        trainer.load_state(state)
        place, said = trainer.position, capsys.readouterr().err
        if keeps and trained:
            assert "=> the test of epoch 2 begins again, because the images changed" in said
            assert (place.epoch, place.train.seen, place.test.seen) == (2, 6, 0)
            assert trainer.train(2, Fixed(random_batch(6))).mean_loss == pytest.approx(2 / 6)
        else:
            assert "=> epoch 2 begins again, because the images changed" in said
            assert place.epoch is None


def test_the_position_of_a_detector_is_refused():
    with pytest.raises(
        InputError, match="not a checkpoint of this program: its position has object"
    ):
        small().load_state(inside(objectness=1.0))


class Greedy(nn.Linear):
    """Asks for a pebibyte."""

    def forward(self, x):
        torch.empty(2**50, dtype=torch.uint8)


def test_out_of_memory_is_one_sentence():
    net = Greedy(1, 1)
    trainer = Trainer(net, criterion(), optimizer(net, 0.1, 0.9, 0), lambda epoch: 1, CPU)
    with pytest.raises(
        InputError, match="out of memory on the CPU: 1125899906842624 bytes"
    ) as stop:
        trainer.train(1, Fixed(random_batch(6)))
    for words in ("6 x 3 x 32 x 32", "-batchSize", "-optnet true", "-precision bfloat16"):
        assert words in str(stop.value)


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("word", ["cosine", "At", "", "step"])
def test_an_unknown_schedule_is_refused(word, warmup):
    """Before the run writes a file: in the first epoch, the trainer's folder is begun."""
    with pytest.raises(InputError, match=f"unknown schedule '{word}' .* every, after or at"):
        small(drops=(word, (1, 2)), warmup=warmup)
