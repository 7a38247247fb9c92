"""Frozen batch norm: constants of the classifier, folded into the convolution before it.

The same function and the same gradient as a frozen batch norm behind the convolution, with one
pass over the map in place of two; names and values in the state dict stay the classifier's.
"""

import torch.nn.functional as F
from torch import nn

from models import fold


class FrozenBatchNorm2d(nn.Module):
    """The four vectors of a batch norm as buffers: nothing of it is trained."""

    def __init__(self, norm):
        super().__init__()
        self.eps, self.folded = norm.eps, False
        self.register_buffer("weight", norm.weight.detach())
        self.register_buffer("bias", norm.bias.detach())
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)

    def affine(self):
        """The factor and the summand of each channel."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x):  # (N, C, H, W)
        if self.folded:
            return x  # the convolution before has done it
        statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, self.weight, self.bias, eps=self.eps)


class FoldedConv2d(nn.Conv2d):
    """A convolution and the frozen batch norm behind it, `norm[0]`: made by `freeze` only."""

    def forward(self, x):
        scale, shift = self.norm[0].affine()
        weight = self.weight * scale.view(-1, 1, 1, 1)
        return F.conv2d(x, weight, shift, self.stride, self.padding, self.dilation, self.groups)


def freeze(model):
    """Freeze every batch norm of a model, in place; returns the model."""
    pairs = [(model.get_submodule(conv), norm) for conv, norm in fold.pairs(model)]
    for name, norm in list(model.named_modules()):
        if isinstance(norm, nn.BatchNorm2d):
            model.set_submodule(name, FrozenBatchNorm2d(norm))
    for conv, name in pairs:
        norm = model.get_submodule(name)
        norm.folded = True
        conv.__class__ = FoldedConv2d  # the same layer under the same name
        conv.norm = (norm,)  # in a tuple: it is registered under its own name already
    return model
