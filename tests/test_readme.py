"""Every command in the README parses, and its net can be built and has its known size."""

import os
import re

import pytest
import torch

import opts
from models import build

# weights of the nets of the paper and of pycls' model zoo (with 10 or 1000 classes)
SIZES = {
    ("cifar10", "resnext", 29, 8): 34_426_698,
    ("cifar10", "resnext", 29, 16): 68_155_210,
    ("imagenet", "resnext", 50, 32): 25_028_904,
    ("imagenet", "resnext", 101, 32): 44_177_704,
    ("imagenet", "resnext", 101, 64): 83_455_272,
    ("imagenet", "resnet", 50, 1): 25_557_032,
    ("imagenet", "resnet", 101, 1): 44_549_160,
}

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def commands():
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        found = re.findall(r"python main\.py((?: -\w+ [^\s`|]+)+)", file.read())
    assert len(found) > 15
    return found


@pytest.mark.parametrize("command", commands())
def test_command(command, monkeypatch, tmp_path):
    for place in ("imagenet", "photos", "other"):
        for split in ("train", "val"):
            (tmp_path / place / split).mkdir(parents=True)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "model_best.pth").touch()
    (tmp_path / "resnext_50_32x4d.t7").touch()
    monkeypatch.chdir(tmp_path)
    opt = opts.parse(command.split())
    if opt.retrain == "none":
        with torch.device("meta"):
            model = build(opt, {"imagenet": 1000, "cifar10": 10, "cifar100": 100}[opt.dataset])
        size = sum(parameter.numel() for parameter in model.parameters())
        assert size == SIZES.get((opt.dataset, opt.netType, opt.depth, opt.cardinality), size)
