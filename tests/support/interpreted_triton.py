"""benchmarks/norm_relu.py in Triton's interpreter, against float64 and against the plain net.

Not collected by itself: TRITON_INTERPRET=1 has to be set before anything imports Triton, so
test_benchmarks.py runs this file in a process of its own.
"""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.resnext import resnext
from models.slices import set_slices

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import norm_relu

# so small that every map has several tiles, parts and cut-off tiles
norm_relu.ROWS, norm_relu.CHANNELS, norm_relu.TILES = 16, 8, 2


def restated(norm, x, shortcut, slices):
    """The same in float64 by PyTorch's operations, slice by slice."""
    running = [norm.running_mean, norm.running_var]
    parts = [
        F.batch_norm(
            part, *(running if i == 0 else [None, None]), norm.weight, norm.bias, True, 0.1, 1e-5
        )
        for i, part in enumerate(x.chunk(slices))
    ]
    total = torch.cat(parts)
    return (total if shortcut is None else total + shortcut).relu()


@pytest.mark.parametrize(
    ("dtype", "slices", "with_sum", "bound"),
    [
        (torch.float32, 1, False, 1e-6),
        (torch.float32, 2, True, 1e-6),
        (torch.float16, 2, False, 1e-3),
        (torch.bfloat16, 1, True, 8e-3),
    ],
)
def test_values_and_gradients(dtype, slices, with_sum, bound):
    random = torch.Generator().manual_seed(1)
    # far from zero, where a sum of squares would cancel
    x = (torch.randn(4, 10, 5, 7, generator=random) + 10).to(dtype)
    shortcut, gradient = (torch.randn(4, 10, 5, 7, generator=random).to(dtype) for _ in range(2))
    norm = nn.BatchNorm2d(10)
    nn.init.normal_(norm.weight, generator=random)
    nn.init.normal_(norm.bias, generator=random)
    exact = nn.BatchNorm2d(10).double()
    exact.load_state_dict(norm.state_dict())
    ours = [x.clone().requires_grad_(), shortcut.clone().requires_grad_()]
    theirs = [x.double().requires_grad_(), shortcut.double().requires_grad_()]
    y = norm_relu.norm_relu(norm, ours[0], ours[1] if with_sum else None, slices)
    y.backward(gradient)
    expected = restated(exact, theirs[0], theirs[1] if with_sum else None, slices)
    expected.backward(gradient.double())

    pairs = [(y, expected), (ours[0].grad, theirs[0].grad)]
    pairs += [(norm.weight.grad, exact.weight.grad), (norm.bias.grad, exact.bias.grad)]
    pairs += [(norm.running_mean, exact.running_mean), (norm.running_var, exact.running_var)]
    if with_sum:
        pairs.append((ours[1].grad, theirs[1].grad))
    for found, wanted in pairs:
        assert (found.double() - wanted).abs().max() <= bound * wanted.abs().max()


def test_a_block_trains_the_same(monkeypatch):
    """The first block of a ResNeXt, the shortcut's convolution included."""
    monkeypatch.setattr(norm_relu, "CHANNELS", 128)  # Triton interprets one program at a time
    torch.manual_seed(1)
    plain = resnext(depth=11, cardinality=2, base_width=4, classes=3, stem="cifar").layer1
    fused = resnext(depth=11, cardinality=2, base_width=4, classes=3, stem="cifar").layer1
    fused.load_state_dict(plain.state_dict())
    for net in (plain, fused):
        set_slices(net, [2])  # as in a training run, where the trainer counts the batches
    norm_relu.use(fused)
    x = torch.randn(2, 64, 3, 3)
    outputs = [net(x) for net in (plain, fused)]
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
    for (name, wanted), found in zip(plain.named_parameters(), fused.parameters()):
        scale = wanted.grad.abs().max()
        assert (wanted.grad - found.grad).abs().max() <= 1e-5 * scale, name
    for wanted, found in zip(plain.buffers(), fused.buffers()):
        torch.testing.assert_close(wanted, found, rtol=1e-5, atol=1e-6)
