"""Test support: a net of 30 parameters and its state, to test a RunFolder without training."""

import contextlib
import os
import types

import torch
from torch import nn

import models
import opts
from storage.run_folder import RunFolder

CPU = torch.device("cpu")


class Trainer:
    """A trainer whose state is a function of the step."""

    def __init__(self, model):
        self.model, self.step = model, 0

    def at(self, step):
        """Set weights and momentum to those of a step."""
        self.step = step
        with torch.no_grad():
            for i, parameter in enumerate(self.model.parameters()):
                parameter.fill_(step + i / 10)
        return self

    def state(self):
        momentum = {n: torch.full_like(p, -self.step) for n, p in self.model.named_parameters()}
        return {"momentum": momentum, "scaler": {}, "position": {"epoch": None}}

    def saved(self, step):
        """(packed model, state) of a step."""
        self.at(step)
        return models.pack(self.model), self.state()


def options(save, *words):
    return opts.parse(["-dataset", "cifar10", "-depth", "20", "-save", str(save), *words])


def model():
    net = nn.Linear(9, 3)
    net.config, net.classes, net.input_spec = {"net": "tiny"}, ["a", "b", "c"], None
    return net


@contextlib.contextmanager
def entered(save, *words, checkpoint=None):
    """An entered RunFolder with a net; epoch(n) and inside(n) save."""
    opt = options(save, *words)
    trainer = Trainer(model())
    with RunFolder(opt.save) as folder:
        folder.begin(opt, checkpoint, trainer.model, CPU)

        def epoch(n, best=False):
            folder.best = (9.0 - n, 1.0)
            folder.save(n, *trainer.saved(n), best, {"seconds": n})

        def inside(n, stop=False):
            folder.best = (10.0 - n, 1.0)
            content, state = trainer.saved(n - 0.5)
            sums = {"done": 1, "seen": 1, "wrong1": 0, "wrong5": 0, "loss": 0.0}
            position = {"epoch": n, "order": [], "train": sums, "test": sums}
            folder.save_inside(content, {**state, "position": position}, stop)

        yield types.SimpleNamespace(folder=folder, trainer=trainer, epoch=epoch, inside=inside)


def step_of(checkpoint):
    """The step of a checkpoint; asserts that all its tensors belong to that step."""
    weights = torch.load(checkpoint["modelFile"])["model"]
    momentum = checkpoint["momentum"]
    step = -float(momentum["weight"][0, 0])
    assert all((tensor == -step).all() for tensor in momentum.values())
    assert (weights["weight"] == step).all() and (weights["bias"] == step + 0.1).all()
    inside = os.path.basename(checkpoint["modelFile"]) == "inside_epoch.pth"
    assert checkpoint["epoch"] == (step - 0.5 if inside else step)
    epochs = [line["epoch"] for line in checkpoint["log"][1:]]
    assert epochs == list(range(1, checkpoint["epoch"] + 1))
    return step
