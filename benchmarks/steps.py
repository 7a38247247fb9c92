"""One training step: ours as main.py takes it, and that of torchvision's and timm's scripts."""

import torch
import torch.nn.functional as F

import models
import opts
from dataloader import Batch
from parallel.group import split_sizes
from runtime.precision import MIXED
from train import setup


def options(words=""):
    """Options of main.py for a step. They name a net and data, which are not used."""
    return opts.parse(f"-dataset cifar10 -depth 20 -LR 0.01 {words}".split())


def ours(net, images, targets, opt):
    """A function that takes our step with these options, and returns the mean loss."""
    models.set_backend("fastest", opt.precision)
    trainer = setup(opt, net.to(images.device).train(), images.device)
    batch = Batch(images, targets, [split_sizes(len(targets), opt.nGPU)])
    step = trainer.captured or trainer._step
    return lambda: step(batch)[1] / len(targets)


def theirs(net, images, targets, precision="single", compiled=False, fused=False, rate=0.01):
    """A function that takes their step with the same optimizer, and returns the mean loss."""
    settings = {"lr": rate, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": True}
    net = net.to(images.device).train()
    sgd = torch.optim.SGD(net.parameters(), **settings, fused=fused)
    kind, mixed = images.device.type, MIXED.get(precision)
    scaler = torch.amp.GradScaler(kind, enabled=precision == "half")
    forward = torch.compile(net) if compiled else net

    def step():
        with torch.autocast(kind, mixed, enabled=mixed is not None):
            loss = F.cross_entropy(forward(images), targets)
        sgd.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(sgd)
        scaler.update()
        return loss.detach()

    return step
