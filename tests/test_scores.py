"""Error counts against what Trainer:computeScore returned under Torch7."""

import json
import math
import os

import numpy as np
import pytest
import torch

from evaluation import scores

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


def test_two_averages():
    outputs = torch.tensor([[[4.0, 0.0], [0.0, 2.0], [0.0, 1.5]]], dtype=torch.float64)
    plain, soft = scores.averages(outputs)
    assert plain[0].tolist() == pytest.approx([4 / 3, 3.5 / 3])  # here the first class wins
    shares = [1 / (1 + math.exp(x)) for x in (-4, 2, 1.5)]
    assert soft[0].tolist() == pytest.approx([sum(shares) / 3, 1 - sum(shares) / 3])
    assert sum(shares) / 3 < 0.5  # and here the second
