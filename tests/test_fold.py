"""Models made ready for inference are the models they were made of."""

import gzip
import os

import pytest
import torch
from support.nets import images, ours, shake, small
from torch import nn

import models
from models import forms
from models.blocks import conv
from models.fold import folded
from models.preresnet import preresnet
from models.preresnext import preresnext
from models.resnet import resnet
from models.resnext import resnext
from models.slices import set_slices

REFERENCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "reference")

# Every place of batch norm, form and shortcut, and how many norms no convolution goes before: of
# the blocks, and behind the last stage. On CIFAR the first block's follows the stem's convolution.
CIFAR = [
    (lambda s: resnet(8, 10, "cifar", s), 0),
    (lambda s: resnet(8, 10, "cifar", s, norm="branch"), 0),
    (lambda s: resnet(8, 10, "cifar", s, norm="sum"), 3),  # behind the sums
    (lambda s: resnext(11, 3, 16, 10, "cifar", s), 0),
    (lambda s: resnext(11, 3, 16, 10, "cifar", s, "resnext_A"), 0),
    (lambda s: resnext(11, 3, 16, 10, "cifar", s, "resnext_B"), 0),
    (lambda s: resnext(11, 3, 16, 10, "cifar", s, "resnet"), 0),
    (lambda s: preresnet(8, 10, "cifar", s), 2 + 1),
    (lambda s: preresnext(11, 3, 16, 10, "cifar", s), 2 + 1),
    (lambda s: preresnext(11, 3, 16, 10, "cifar", s, "resnext_A"), 2 + 1),
    (lambda s: preresnext(11, 3, 16, 10, "cifar", s, "resnext_B"), 2 + 1),
]
IMAGENET = [
    (lambda: resnet(18, 10), 0),
    (lambda: resnet(50, 10, norm="sum"), 16),
    (lambda: resnext(50, 4, 16, 10), 0),
    (lambda: preresnet(18, 10), 7 + 1),  # the stem does what the first block's would
    (lambda: preresnet(18, 10, norm="each"), 8 + 1),
]


def norms(net):
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def close(net, other, side, tolerance=1e-12):
    """Scores and features agree, relative to the largest."""
    x = images(net, side)
    with torch.inference_mode():
        for ask in ("forward", "features") if hasattr(net, "features") else ("forward",):
            expected, found = getattr(net, ask)(x), getattr(other, ask)(x)
            assert expected.abs().max() > 1e-3
            assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("shortcut", ["A", "B", "C", "none"])
@pytest.mark.parametrize("number", range(len(CIFAR)))
def test_folded_is_the_same_function(number, shortcut):
    make, left = CIFAR[number]
    check(make(shortcut), left, 16)


@pytest.mark.parametrize("number", range(len(IMAGENET)))
def test_folded_is_the_same_function_on_imagenet(number):
    make, left = IMAGENET[number]
    check(make(), left, 64)


def check(net, left, side):
    """In float64: some hundred roundings."""
    net = ours(net.double())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    set_slices(net.train(), [2, 1])  # as in a training run
    ready = folded(net)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not ready.training and not any(p.requires_grad for p in ready.parameters())
    assert norms(ready) == left
    close(net.eval(), ready, side)


@pytest.mark.parametrize("form", ["resnext_A", "resnext_B"])
def test_paths_are_joined(form):
    net = small()
    net.transform = "kept"
    wide = folded(net)
    paths = ours(resnext(11, 2, 4, 3, "cifar", "B", form), net.classes)
    paths.load_state_dict(forms.convert(net.state_dict(), form, 2))
    ready = folded(paths)
    assert ready.state_dict().keys() == wide.state_dict().keys()
    assert ready.classes == net.classes and wide.transform == "kept"
    assert ready.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    close(net, ready, 32, 1e-5)  # float32, roundings of 1e-7 each


def test_a_net_of_torch7(tmp_path):
    folder = os.path.join(REFERENCE, "checkpoints", "resnet20_epoch3")
    with gzip.open(os.path.join(folder, "model_3.t7.gz")) as file:
        (tmp_path / "model_3.t7").write_bytes(file.read())
    net = models.load(tmp_path / "model_3.t7").double()
    ready = folded(net)
    assert norms(net) > 0 and norms(ready) == 0 and ready.classes == net.classes
    close(net, ready, 32)


class Odd(nn.Module):
    """What must not be folded, or not twice."""

    def __init__(self):
        super().__init__()
        self.seen, self.norm1 = conv(3, 4, 3), nn.BatchNorm2d(4)  # the convolution has two users
        self.twice, self.norm2 = conv(4, 4, 3), nn.BatchNorm2d(4)  # ... runs twice
        self.own, self.norm3 = Doubled(4, 4, 1), nn.BatchNorm2d(4)  # ... does more
        self.biased, self.norm4 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False)
        self.batch = nn.BatchNorm2d(4, track_running_stats=False)  # the batch's own statistics
        self.last = conv(4, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.seen(x)
        x = x + self.norm1(x)
        x = self.norm2(self.twice(self.twice(x)))
        x = self.norm3(self.own(x))
        x = self.norm4(self.biased(x))
        return self.fc(self.batch(self.last(x)).relu().mean((2, 3)))


class Doubled(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) / self.weight.norm()


def test_what_cannot_be_folded_stays():
    net = shake(Odd().double())
    ready = folded(net)
    assert norms(net) == 5 and norms(ready) == 4
    close(net, ready, 8)


class Looks(Odd):
    def forward(self, x):
        return super().forward(x) if x.abs().sum() > 0 else x


def test_a_net_that_looks_at_its_numbers_stays():
    net = shake(Looks().double())
    ready = folded(net)
    assert norms(ready) == 5 and ready is not net
    close(net, ready, 8)


def test_reduced_precision():
    net = small()
    ready = folded(net, torch.bfloat16)
    assert {ready.conv1.weight.dtype, ready.fc.weight.dtype} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        close(net, ready, 32, 3e-2)  # 8 bits, so 0.4 % each, over 11 layers
