"""pretrained/resnet20-cifar10.pth, a net trained here, and the figures that pages give for it."""

import json
import os
import re

import pytest
import torch
from support.runs import ROOT

import evaluate
import models

FILE = os.path.join(ROOT, "pretrained", "resnet20-cifar10.pth")
LOG = os.path.join(ROOT, "benchmarks", "logs", "resnet20-cifar10-12.jsonl")


def test_the_file_is_the_net_of_the_log():
    model = models.load(FILE)
    with open(LOG) as file:
        about, *epochs = map(json.loads, file)
    assert model.config == about["net"] and epochs[-1]["epoch"] == about["options"]["nEpochs"]
    assert model.classes[:2] == ["airplane", "automobile"] and len(model.classes) == 10
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    # a picture has 8-bit pixels, and batch norm's statistics are those of such pictures
    with torch.no_grad():
        scores = model(torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    assert scores.abs().max() < 100
    with open(os.path.join(ROOT, "pretrained", "README.md")) as file:
        (error,) = re.findall(r"its top-1 error is ([\d.]+) %", file.read())
    assert float(error) == round(epochs[-1]["test"]["top1"], 2)


@pytest.mark.skipif("CIFAR10" not in os.environ, reason="CIFAR10 does not name CIFAR-10's folder")
def test_the_error_on_all_test_images(tmp_path, capsys):
    """CIFAR10=DIR pytest tests/test_trained_net.py, where DIR holds cifar-10-batches-bin."""
    data = ["-data", os.environ["CIFAR10"], "-gen", str(tmp_path), "-batchSize", "500"]
    evaluate.main([FILE, "-dataset", "cifar10", *data])
    found = re.search(r"top1: +([\d.]+)", capsys.readouterr().out)
    with open(LOG) as file:
        last = json.loads(file.read().splitlines()[-1])
    assert abs(float(found[1]) - last["test"]["top1"]) <= 0.02  # of 10,000: rounding moves two
