"""Which depths exist: the original's tables and its words, without importing PyTorch."""

import subprocess
import sys

import pytest

from models.depths import NETS, stages
from runtime.errors import InputError


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152, 200])
def test_imagenet_blocks_make_up_the_depth(net, depth):
    if depth not in NETS[net][0]:
        with pytest.raises(InputError, match=f"^Invalid depth: {depth}; for {net} "):
            stages(net, "imagenet", depth)
        return
    kind, counts = stages(net, "imagenet", depth)
    assert kind == ("basic" if depth < 50 else "bottleneck")
    assert len(counts) == 4
    layers = {"basic": 2, "bottleneck": 3}[kind]
    assert layers * sum(counts) + 2 == depth  # and the stem and the classifier


def test_the_depths_of_the_lua_files():
    assert {net: depths for net, (depths, _) in NETS.items()} == {
        "resnext": (50, 101, 152),
        "preresnext": (50, 101, 152, 200),
        "resnet": (18, 34, 50, 101, 152),
        "preresnet": (18, 34, 50, 101, 152, 200),
    }
    assert stages("resnext", "imagenet", 101) == ("bottleneck", (3, 4, 23, 3))
    assert stages("preresnet", "imagenet", 200) == ("bottleneck", (3, 24, 36, 3))


@pytest.mark.parametrize("net", ["resnext", "preresnext"])
@pytest.mark.parametrize(("depth", "n"), [(11, 1), (20, 2), (29, 3), (56, 6), (101, 11)])
def test_cifar_bottlenecks(net, depth, n):
    assert stages(net, "cifar", depth) == ("bottleneck", (n, n, n))


@pytest.mark.parametrize("net", ["resnet", "preresnet"])
@pytest.mark.parametrize(("depth", "n"), [(8, 1), (20, 3), (56, 9), (110, 18), (1202, 200)])
def test_cifar_basic_blocks(net, depth, n):
    assert stages(net, "cifar", depth) == ("basic", (n, n, n))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("resnext", "imagenet", 34), ["Invalid depth: 34", "resnext", "50, 101 or 152"]),
        (("preresnext", "imagenet", 18), ["Invalid depth: 18", "50, 101, 152 or 200"]),
        (("resnet", "imagenet", 20), ["Invalid depth: 20", "18, 34, 50, 101 or 152"]),
        (
            ("resnext", "cifar", 30),
            ["depth should be one of 29, 38, 47, 56, 101", "9n+2", "resnext", "30"],
        ),
        (
            ("preresnet", "cifar", 21),
            ["depth should be one of 20, 32, 44, 56, 110, 1202", "6n+2", "preresnet", "21"],
        ),
        (("resnet", "cifar", 2), ["depth should be one of 20, 32", "not 2"]),
        (("resnext", "cifar", -7), ["depth should be one of 29, 38", "not -7"]),
        (("resnet", "mnist", 20), ["invalid stem: mnist", "imagenet, cifar"]),
        (("vgg", "cifar", 20), ["vgg", "resnext, preresnext, resnet, preresnet"]),
        (("resnext", "cifar", 29, "foo"), ["invalid bottleneck type: foo", "resnet, resnext_A"]),
    ],
)
def test_what_does_not_exist_is_told_in_one_sentence(arguments, words):
    with pytest.raises(InputError) as caught:
        stages(*arguments)
    text = str(caught.value)
    assert all(word in text for word in words)
    assert "\n" not in text


def test_the_tables_need_no_pytorch():
    code = "import sys, models.depths; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
