"""Test support: the results that the original printed under Torch7, and the formulas of its inputs.

The original's nets were run with weights, inputs and labels that are pure functions of a seed, the
same to the bit in LuaJIT and numpy, so that only results had to be stored (tests/reference/models).
"""

import json
from pathlib import Path

import numpy as np
import torch

REFERENCE = Path(__file__).parents[1] / "reference"


def u01(seed, start, count):
    """`count` uniforms in [0, 1) from position `start` of a seed's stream (splitmix64), float64."""
    with np.errstate(over="ignore"):
        x = np.uint64(seed) * np.uint64(2**32) + np.uint64(start)
        z = x + np.arange(1, count + 1, dtype=np.uint64)
        z = z * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53


def fill(shape, seed, center, half, start=0):
    """Uniform in center +- half, rounded to float32 as Torch stored it; a float64 tensor."""
    count = int(np.prod(shape))
    values = center + half * (2 * u01(seed, start, count) - 1)
    return torch.from_numpy(values.astype(np.float32).astype(np.float64).reshape(shape))


def targets(count, seed, classes):
    """Labels, counted from 0 (Torch counts from 1): int64 (count,)."""
    return torch.from_numpy(np.floor(u01(seed, 0, count) * classes).astype(np.int64))


def batch(shape, classes, step):
    """Input and labels of step 1, 2 or 3 of the reference runs."""
    return fill(shape, 5000 + step, 0, 3**0.5), targets(shape[0], 5100 + step, classes)


def facts():
    """{key: facts of one net}: how it was made, and its parameters in getParameters() order."""
    return json.loads((REFERENCE / "models" / "nets.json").read_text())


def numbers(key):
    """The original's results for one net: {name: array}, see tests/reference/models/README.md."""
    with np.load(REFERENCE / "models" / f"{key}.npz") as file:
        return dict(file)


def fill_net(net, parameters, mean, var):
    """Give a net the formula's weights and the stored running statistics, in float64.

    `parameters` is [[type, name, shape, center, half], ...] in getParameters() order.
    """
    net.double()
    offset = 0
    own = list(net.parameters())
    assert len(own) == len(parameters)
    with torch.no_grad():
        for parameter, (_, _, shape, center, half) in zip(own, parameters):
            assert list(parameter.shape) == shape
            parameter.copy_(fill(shape, 1000, center, half, offset))
            offset += parameter.numel()
        for norm in norms(net):
            size = norm.num_features
            norm.running_mean.copy_(torch.from_numpy(mean[:size]))
            norm.running_var.copy_(torch.from_numpy(var[:size]))
            mean, var = mean[size:], var[size:]
    assert len(mean) == len(var) == 0
    return net


def norms(net):
    """The net's batch norms in order."""
    return [m for m in net.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]


def flat(tensors):
    """All values of some tensors, one after the other: a 1-D array."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).numpy()


def step(count):
    """The stride that leaves at most 1000 of `count` values."""
    return -(-count // 1000)


def thin(values):
    """At most 1000 of the values, evenly spaced: what is stored of a long array."""
    return values[:: step(len(values))]
