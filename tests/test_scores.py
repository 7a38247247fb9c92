"""Error counts against what Trainer:computeScore returned under Torch7."""

import json
import math
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evaluation import scores
from models.resnet import resnet

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "reference", "misc")
with open(os.path.join(HERE, "misc.json")) as file:
    # equal outputs are ranked by an unstable sort in either library: no order to compare
    CASES = [c for c in json.load(file)["computeScore"] if not c["name"].startswith("ties")]


@pytest.mark.parametrize("case", [c for c in CASES if c["ok"] and c["name"] != "nan"], ids=str)
def test_as_torch7(case):
    arrays = np.load(os.path.join(HERE, "computeScore.npz"))
    output = torch.from_numpy(arrays[case["name"] + "/output"])
    target = torch.from_numpy(arrays[case["name"] + "/target"]).long() - 1
    wrong = scores.count_errors(scores.sum_crops(output, case["nCrops"]), target).values()
    percent = [100 * int(count) / len(target) for count in wrong]
    assert percent == pytest.approx([case["top1"], case["top5"]], rel=1e-12)


@pytest.mark.parametrize("classes", [1, 2, 3, 4])
def test_fewer_than_five_classes(classes):
    output, target = torch.eye(8, classes), torch.zeros(8, dtype=torch.int64)
    output[:, 0] -= 2.0  # class 0 comes last in every row
    top1, top5 = scores.count_errors(output, target).values()
    assert int(top1) == (8 if classes > 1 else 0)
    assert int(top5) == 0  # every class is among the best min(5, classes)


def test_what_is_not_a_number_is_wrong():
    output = torch.tensor([[0.0, 1.0], [float("nan"), 1.0]])
    assert [int(n) for n in scores.count_errors(output, torch.tensor([1, 1])).values()] == [1, 1]


@pytest.mark.parametrize("height, width, window", [(7, 7, 7), (9, 12, 7), (8, 3, 4), (2, 2, 8)])
def test_dense_is_the_classifier_at_each_place(height, width, window):
    torch.manual_seed(1)
    maps, fc = torch.randn(2, 6, height, width, dtype=torch.float64), torch.nn.Linear(6, 4).double()
    tall, wide = min(window, height), min(window, width)
    expected = [
        fc(maps[:, :, y : y + tall, x : x + wide].mean((2, 3)))
        for y in range(height - tall + 1)
        for x in range(width - wide + 1)
    ]
    assert torch.allclose(scores.dense(maps, fc, window), torch.stack(expected, 1), rtol=1e-12)


def test_a_larger_crop_is_pooled_as_the_authors_did_it():
    """Avg(7, 7, 1, 1), the linear layer as a 1 x 1 convolution, the mean over its places."""
    torch.manual_seed(1)
    net = resnet(18, 5).double().eval()
    images = torch.randn(2, 3, 320, 320, dtype=torch.float64)
    maps = net.maps(images)
    pooled = F.avg_pool2d(maps, 7, 1)
    expected = F.conv2d(pooled, net.fc.weight[:, :, None, None], net.fc.bias)
    assert expected.shape == (2, 5, 4, 4)
    window = scores.window_side(net, 224)
    found = scores.outputs(net, images, window).mean(1)
    assert window == 7 and torch.allclose(found, expected.mean((2, 3)), rtol=1e-12)
    assert not torch.allclose(found, net(images), rtol=1e-3)
    assert torch.equal(scores.outputs(net, images).mean(1), net(images))
    trained = resnet(18, 5).train()
    before = [buffer.clone() for buffer in trained.buffers()]
    assert scores.window_side(trained, 64) == 2 and trained.training
    assert all(map(torch.equal, before, trained.buffers()))


def test_two_averages():
    outputs = torch.tensor([[[4.0, 0.0], [0.0, 2.0], [0.0, 1.5]]], dtype=torch.float64)
    plain, soft = scores.averages(outputs)
    assert plain[0].tolist() == pytest.approx([4 / 3, 3.5 / 3])  # here the first class wins
    shares = [1 / (1 + math.exp(x)) for x in (-4, 2, 1.5)]
    assert soft[0].tolist() == pytest.approx([sum(shares) / 3, 1 - sum(shares) / 3])
    assert sum(shares) / 3 < 0.5  # and here the second
