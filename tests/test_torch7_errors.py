"""What formats/torch7.py says about trees that are none of our nets."""

import re

import pytest
import torch
from support.lua_nn import at, random_net, read, resnet8, whole

from formats import t7, torch7
from runtime.errors import InputError


def test_a_bias_with_no_batch_norm_behind_it_is_refused():
    net = random_net(whole({"net": "preresnet", "depth": 8, "stem": "cifar"}))
    tree = torch7.to_t7(net.config, net.state_dict())
    last = at(tree, "3.1.3.1.4")
    last["bias"] = torch.zeros(32)
    assert read(tree)
    last["bias"][3] = 1
    with pytest.raises(InputError, match="'layer2.0.conv2.bias' is a bias that no batch norm"):
        read(tree)


def put(path, **fields):
    return lambda tree: at(tree, path).update(fields)


def insert(path, index, part):
    def change(tree):
        parts = at(tree, path)["modules"].array()
        parts.insert(index - 1, part)
        at(tree, path)["modules"] = t7.Table(enumerate(parts, 1))

    return change


def rename(path, typename):
    return lambda tree: setattr(at(tree, path), "typename", typename)


def drop(path, field):
    return lambda tree: (at(tree, path) if path else tree).pop(field)


DROPOUT = t7.Object("nn.Dropout")
NORM = "nn.SpatialBatchNormalization"
WRONG = [
    (insert("5.1.1.1", 3, DROPOUT), "module 5.1.1.1.3, nn.Dropout, is where a ReLU should be"),
    (insert("4.1", 4, DROPOUT), "module 4.1.4, nn.Dropout, is where a ConcatTable should be"),
    (insert("5.1.1", 3, DROPOUT), "module 5.1.1.3, nn.Dropout, comes after the last"),
    (
        lambda tree: tree["modules"].update({10: DROPOUT}),
        "module 10, nn.Dropout, is not a classifier",
    ),
    (
        lambda tree: at(tree, "5.1.1.1")["modules"].popitem(),
        "module 5.1.1.1, nn.Sequential, ends after 4 modules, before a SpatialBatchNormalization",
    ),
    (put("5.1.1.1.1", kW=5), "module 5.1.1.1.1, cudnn.SpatialConvolution, has kW 5, not 3"),
    (put("5.1.1.1.1", groups=2), "module 5.1.1.1.1, cudnn.SpatialConvolution, has groups 2, not 1"),
    (put("2", eps=0.001), f"module 2, {NORM}, has eps 0.001, not 1e-05"),
    (drop("2", "weight"), f"module 2, {NORM}, has no weight"),
    (drop("2", "running_var"), f"module 2, {NORM}, has no running_var"),
    (put("2", bias=torch.ones(3)), f"module 2, {NORM}, has a bias of size (3,), not (16,)"),
    (put("1", weight=torch.ones(2, 2)), "module 1, cudnn.SpatialConvolution, has a weight of size"),
    (put("7", kW=7), "module 7, cudnn.SpatialAveragePooling, has kW 7, not 8"),
    (rename("6.1.2", "nn.CMulTable"), "module 6.1.2, nn.CMulTable, is where a CAddTable"),
    (rename("6.1.1", "nn.gModule"), "module 6.1.1, nn.gModule, is where a ConcatTable"),
    (rename("6.1.1", "my.ConcatTable"), "module 6.1.1, my.ConcatTable, is where a ConcatTable"),
    (rename("4.1.3", "nn.Tanh"), "module 4.1.3, nn.Tanh, is where a ReLU should be"),
    (put("9", weight=3), "module 9, nn.Linear, is not a classifier"),
    (lambda tree: tree["modules"].update({4: "text"}), "module 4 is not a module"),
    (drop("", "modules"), "the whole, nn.Sequential, is not a container"),
    (put("5", modules=t7.Table()), "has no stages of residual blocks"),
    (put("5.1", modules=t7.Table()), "module 6.1.1.1.1, cudnn.SpatialConvolution, has nInputPlane"),
    (insert("5", 1, DROPOUT), "module 5.1, nn.Dropout, is where a ConcatTable should be"),
    (lambda tree: at(tree, "6")["modules"].update({2: tree}), "is also the whole net"),
    (lambda tree: at(tree, "5")["modules"].update({2: at(tree, "5.1")}), "is also module 5.2"),
    (put("4.1.1.1.1", nOutputPlane=torch.ones(2)), "has nOutputPlane None, not 16"),
    (put("4.1.1.1.2", running_mean=torch.zeros(16, dtype=torch.int64)), "has no running_mean"),
    (lambda tree: tree["modules"].pop(9), "module 8, nn.View, is not a classifier"),
]


@pytest.mark.parametrize("change, message", WRONG, ids=[message for _, message in WRONG])
def test_what_has_no_place_is_named(change, message):
    _, tree = resnet8(shortcut="A")
    change(tree)
    begin = "^net.t7 is not a net of this program: "
    with pytest.raises(InputError, match=f"{begin}.*{re.escape(message)}"):
        torch7.from_t7(tree, "net.t7")


@pytest.mark.parametrize(
    "tree", [None, 3, "text", t7.Table({1: 2}), torch.ones(2), t7.Object("nn.Linear")]
)
def test_what_is_no_net_at_all_is_refused(tree):
    with pytest.raises(InputError, match="not a net of this program"):
        torch7.from_t7(tree)
