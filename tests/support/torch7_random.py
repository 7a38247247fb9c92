"""Test support: Torch7's random generator and initialisation, restated from reference note 10.

MT19937; uniform = raw / 2^32; normal = Box-Muller, cosine first, then sine; a FloatTensor rounds
its bounds and deviation to float32 first. Constructors draw before ConvInit overwrites.
"""

import numpy as np
import torch
from torch import nn


class Generator:
    def __init__(self, seed):
        self.twister = np.random.RandomState(seed)  # init_genrand, as torch.manualSeed
        self.sine = None  # the second half of a Box-Muller pair

    def raw(self, n):
        return self.twister.randint(0, 2**32, n, dtype=np.uint32).astype(np.float64) / 2**32

    def uniform(self, n, half):
        half = float(np.float32(half))
        return (self.raw(n) * (half - -half) + -half).astype(np.float32)

    def normal(self, n, std):
        std = float(np.float32(std))
        values = [] if self.sine is None else [self.sine]
        pairs = (n - len(values) + 1) // 2
        x, y = self.raw(2 * pairs).reshape(pairs, 2).T
        rho = np.sqrt(-2 * np.log(1 - y))
        both = np.stack([rho * np.cos(2 * np.pi * x), rho * np.sin(2 * np.pi * x)], 1).ravel()
        values = np.concatenate([values, both])
        self.sine = values[n] if len(values) > n else None
        return (values[:n] * std).astype(np.float32)


def initialise(model, seed):
    """Give a net whose modules stand in the Lua's order of construction the Lua's weights."""
    generator = Generator(seed)
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    layers = [layer for layer in model.modules() if isinstance(layer, kinds)]
    for layer in layers:  # the constructors
        weight = layer.weight
        if isinstance(layer, nn.BatchNorm2d):
            generator.raw(weight.numel())
            continue
        outputs, fan_in = weight.shape[0], weight[0].numel()
        drawn = generator.uniform(weight.numel(), 1 / np.sqrt(fan_in))
        generator.raw(outputs)  # the bias
        if isinstance(layer, nn.Linear):
            _set(weight, drawn)
    for layer in layers:  # ConvInit
        if isinstance(layer, nn.Conv2d):
            n = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
            _set(layer.weight, generator.normal(layer.weight.numel(), np.sqrt(2 / n)))
    return model


def _set(parameter, values):
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(values).view(parameter.shape))
