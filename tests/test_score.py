"""Error counts against what Trainer:computeScore returned under Torch7."""

import json
import os

import numpy as np
import pytest
import torch

import score

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "reference", "misc")
with open(os.path.join(HERE, "misc.json")) as file:
    # equal outputs are ranked by an unstable sort in either library: no order to compare
    CASES = [c for c in json.load(file)["computeScore"] if not c["name"].startswith("ties")]


@pytest.mark.parametrize("case", [c for c in CASES if c["ok"] and c["name"] != "nan"], ids=str)
def test_as_torch7(case):
    arrays = np.load(os.path.join(HERE, "computeScore.npz"))
    output = torch.from_numpy(arrays[case["name"] + "/output"])
    target = torch.from_numpy(arrays[case["name"] + "/target"]).long() - 1
    wrong = score.errors(score.sum_crops(output, case["nCrops"]), target)
    percent = [100 * int(count) / len(target) for count in wrong]
    assert percent == pytest.approx([case["top1"], case["top5"]], rel=1e-12)


@pytest.mark.parametrize("classes", [1, 2, 3, 4])
def test_fewer_than_five_classes(classes):
    output, target = torch.eye(8, classes), torch.zeros(8, dtype=torch.int64)
    output[:, 0] -= 2.0  # class 0 comes last in every row
    top1, top5 = score.errors(output, target)
    assert int(top1) == (8 if classes > 1 else 0)
    assert int(top5) == 0  # every class is among the best min(5, classes)


def test_what_is_not_a_number_is_wrong():
    output = torch.tensor([[0.0, 1.0], [float("nan"), 1.0]])
    assert [int(n) for n in score.errors(output, torch.tensor([1, 1]))] == [1, 1]
