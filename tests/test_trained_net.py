"""pretrained/resnet20-cifar10.pth, a net trained here: real photos against a restatement."""

import json
import os
import re

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_sample_images
from support.runs import ROOT

import models

FILE = os.path.join(ROOT, "pretrained", "resnet20-cifar10.pth")
LOG = os.path.join(ROOT, "benchmarks", "logs", "resnet20-cifar10-12.jsonl")


def restated(weights, x):
    """ResNet-20 as the ResNet paper has it for CIFAR-10 (section 4.2), in float64."""

    def convolution(x, layer, norm, stride=1):
        x = F.conv2d(x, weights[f"{layer}.weight"], stride=stride, padding=1)
        parts = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(weights[f"{norm}.{part}"] for part in parts))

    x = convolution(x, "conv1", "bn1").relu()
    for stage in (1, 2, 3):
        for block in (0, 1, 2):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            shortcut = x[:, :, ::stride, ::stride]
            y = convolution(x, f"{name}.conv1", f"{name}.bn1", stride).relu()
            y = convolution(y, f"{name}.conv2", f"{name}.bn2")
            missing = y.shape[1] - x.shape[1]
            x = (y + F.pad(shortcut, (0, 0, 0, 0, 0, missing))).relu()
    return F.linear(x.mean((2, 3)), weights["fc.weight"], weights["fc.bias"])


def test_ten_photos(tmp_path):
    """Squares of scikit-learn's two photos; CIFAR-10's own images may not be copied here."""
    model = models.load(FILE)
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)))
    paths, expected = [], []
    for photo in load_sample_images().images:  # (427, 640, 3) bytes
        for i in range(5):
            square = photo[i * 60 : i * 60 + 160, i * 100 : i * 100 + 160][::5, ::5]
            paths.append(str(tmp_path / f"{len(paths)}.png"))
            Image.fromarray(square).save(paths[-1])
            pixels = torch.from_numpy(square.copy()).permute(2, 0, 1).double()
            expected.append(restated(weights, ((pixels - mean) / std)[None])[0])
    with torch.no_grad():
        found = model(torch.stack([model.transform(path) for path in paths]))
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert len(set(found.argmax(1).tolist())) > 1


def test_the_file_is_the_net_of_the_log():
    model = models.load(FILE)
    with open(LOG) as file:
        about, *epochs = map(json.loads, file)
    assert model.config == about["net"] and epochs[-1]["epoch"] == about["options"]["nEpochs"]
    assert model.classes[:2] == ["airplane", "automobile"] and len(model.classes) == 10
    with open(os.path.join(ROOT, "pretrained", "README.md")) as file:
        (error,) = re.findall(r"its top-1 error is ([\d.]+) %", file.read())
    assert float(error) == pytest.approx(epochs[-1]["test"]["top1"], abs=0.005)
