"""Test support: nets with random parameters and buffers, and checks of model files."""

import pytest
import torch

import models
from models.resnext import resnext
from runtime.errors import InputError

OWN = {"scale": 9, "crop": 8, "largest": 255, "mean": (1.5, 2.0, 3.0), "std": (60.0, 61.5, 62.0)}
V1 = {
    "scale": 256,
    "crop": 224,
    "largest": 1,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "resize": "bilinear",
}


def shake(net):
    """Fill any net's parameters and buffers with random values; returns it in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in net.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif tensor.ndim > 1:
            tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
        else:  # batch norms and the bias of fc; a variance must not be negative
            tensor.uniform_(0.5, 1.5, generator=generator)
    return net.eval()


def ours(net, classes=None, input_spec=None):
    """`shake` for a net of this program, with classes and input spec."""
    net.classes, net.input_spec = classes, input_spec
    return shake(net)


def small():
    """A small ResNeXt of 3 classes."""
    return ours(resnext(11, 2, 4, 3, "cifar"), ["cat", "Hündin", "fox"], OWN)


def images(net, side, count=2):
    """Random images (count, 3, side, side) in the dtype of a net's weights."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, 3, side, side, generator=generator).to(net.fc.weight.dtype)


def refused(source, *words):
    """Assert that a model file is refused in one sentence that names it; returns the sentence."""
    with pytest.raises(InputError) as caught:
        models.load_file(source)
    text = str(caught.value)
    assert str(source) in text and "\n" not in text
    for word in words:
        assert word in text
    return text


def same(content, expected):
    """Assert that two contents of model files are equal to the bit."""
    assert list(content) == ["model", "config", "classes", "preprocessing"]
    for name in ("config", "classes", "preprocessing"):
        assert content[name] == expected[name]
    assert content["model"].keys() == expected["model"].keys()
    for name, tensor in expected["model"].items():
        assert content["model"][name].dtype == tensor.dtype
        assert torch.equal(content["model"][name], tensor), name
