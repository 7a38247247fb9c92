"""Every command that the two original repositories published means what it meant there.

The commands are typed off their README.md, TRAINING.md and pretrained/README.md. What each meant is
from their opts.lua (epochs, shortcut), train.lua (drops) and from what was published of the nets:
parameters of the CIFAR nets in table 6 of the ResNet paper (https://arxiv.org/abs/1512.03385) and
table 7 of the ResNeXt paper, of the ImageNet nets in torchvision's documentation.
"""

import os

import pytest

import complexity
import opts
from train import learning_rate

# epochs, shortcut, first epochs of the rates 0.1, 0.01, ... times -LR
FB_IMAGENET = (90, "B", (1, 31, 61))
FB_CIFAR = (164, "A", (1, 81, 122))
RESNEXT_IMAGENET = (100, "B", (1, 31, 61, 91))
RESNEXT_CIFAR = (300, "B", (1, 148, 223))  # 0.49 and 0.74 of 300 epochs, exclusive

SHARE = "-shareGradInput true"
X_CIFAR = (
    f"-dataset cifar10 -bottleneckType resnext_C -depth 29 -baseWidth 64 -cardinality 16 {SHARE}"
)
COMMANDS = [
    # fb.resnet.torch, README.md
    ("-data IMAGENET", "resnet", 21.80, FB_IMAGENET, 0.1),
    (
        f"-depth 50 -batchSize 256 -nGPU 4 -nThreads 8 {SHARE} -data IMAGENET",
        *("resnet", 25.56, FB_IMAGENET, 0.1),
    ),
    # fb.resnet.torch, TRAINING.md
    ("-dataset cifar10 -nGPU 2 -batchSize 128 -depth 20", "resnet", 0.27, FB_CIFAR, 0.1),
    ("-dataset cifar10 -nGPU 2 -batchSize 128 -depth 110", "resnet", 1.7, FB_CIFAR, 0.1),
    pytest.param(
        f"-dataset cifar10 -nGPU 2 -batchSize 128 -depth 1202 {SHARE}",
        *("resnet", 19.4, FB_CIFAR, 0.1),
        marks=pytest.mark.slow,
    ),
    (
        "-depth 18 -nGPU 4 -nThreads 8 -batchSize 256 -data IMAGENET",
        "resnet",
        11.69,
        FB_IMAGENET,
        0.1,
    ),
    (
        "-depth 34 -nGPU 4 -nThreads 8 -batchSize 256 -data IMAGENET",
        "resnet",
        21.80,
        FB_IMAGENET,
        0.1,
    ),
    (
        f"-depth 50 -nGPU 4 -nThreads 8 -batchSize 256 {SHARE} -data IMAGENET",
        *("resnet", 25.56, FB_IMAGENET, 0.1),
    ),
    (
        f"-depth 152 -nGPU 8 -nThreads 12 -batchSize 256 {SHARE} -data IMAGENET",
        *("resnet", 60.19, FB_IMAGENET, 0.1),
    ),
    # ResNeXt, README.md
    (
        "-dataset imagenet -bottleneckType resnext_C -depth 50 -baseWidth 4 -cardinality 32 "
        f"-batchSize 256 -nGPU 8 -nThreads 8 {SHARE} -data IMAGENET",
        *("resnext", 25.03, RESNEXT_IMAGENET, 0.1),
    ),
    (
        f"{X_CIFAR} -weightDecay 5e-4 -batchSize 128 -nGPU 8 -nThreads 8",
        *("resnext", 68.1, RESNEXT_CIFAR, 0.1),
    ),
    (
        f"{X_CIFAR} -weightDecay 5e-4 -batchSize 64 -nGPU 4 -LR 0.05 -nThreads 8",
        *("resnext", 68.1, RESNEXT_CIFAR, 0.05),
    ),
    (
        f"{X_CIFAR} -weightDecay 5e-4 -batchSize 32 -nGPU 2 -LR 0.025 -nThreads 8",
        *("resnext", 68.1, RESNEXT_CIFAR, 0.025),
    ),
]


@pytest.fixture
def imagenet(tmp_path):
    for split in ("train", "val"):
        os.makedirs(tmp_path / split / "class")
    return str(tmp_path)


@pytest.mark.parametrize("words, net, millions, recipe, rate", COMMANDS)
def test_a_published_command(words, net, millions, recipe, rate, imagenet):
    opt = opts.parse(words.replace("IMAGENET", imagenet).split())
    epochs, shortcut, drops = recipe
    assert (opt.netType, opt.nEpochs, opt.shortcutType) == (net, epochs, shortcut)
    for power, (first, end) in enumerate(zip(drops, [*drops[1:], epochs + 1])):
        for epoch in (first, end - 1):
            assert learning_rate(opt, epoch) == pytest.approx(rate * 0.1**power), epoch
    net, _ = complexity.build(
        opts.settle({**opt.given, "nClasses": 10 if opt.stem == "cifar" else 1000})
    )
    parameters = sum(p.numel() for p in net.parameters())
    digits = len(str(millions).split(".")[1])  # of which some tables cut off the rest
    assert parameters / 1e6 == pytest.approx(millions, abs=0.6 * 10**-digits)


def test_fine_tuning(imagenet, tmp_path):
    """pretrained/README.md: th main.lua -retrain resnet-50.t7 -data ... -nClasses 80."""
    (tmp_path / "resnet-50.t7").write_bytes(b"")
    words = f"-retrain {tmp_path}/resnet-50.t7 -data {imagenet} -resetClassifier true -nClasses 80"
    opt = opts.parse(words.split())
    opt = opts.settle(opt.given, None, {"net": "resnet", "depth": 50, "shortcut": "B"})
    assert (opt.netType, opt.depth, opt.nEpochs, opt.nClasses) == ("resnet", 50, 90, 80)


@pytest.mark.parametrize("net, epochs", [("resnext", 100), ("preresnet", 90), ("resnet", 90)])
def test_a_net_from_a_file_brings_its_recipe(net, epochs, imagenet, tmp_path, capsys):
    (tmp_path / "net.pth").write_bytes(b"")
    words = f"-retrain {tmp_path}/net.pth -data {imagenet}"
    opt = opts.parse(words.split())
    config = {"net": net, "depth": 101, "shortcut": "C"}
    opt = opts.settle(opt.given, None, config)
    opts.report(opt, config)
    assert capsys.readouterr() == ("", "")
    assert (opt.netType, opt.nEpochs, opt.depth, opt.shortcutType) == (net, epochs, 101, "C")
    opt = opts.parse(f"{words} -netType resnext -depth 50 -nEpochs 7".split())
    config = {"net": net, "depth": 101}
    opt = opts.settle(opt.given, None, config)
    opts.report(opt, config)
    said = f"=> -netType resnext chooses the recipe alone: the model is a {net}\n"
    given = "=> -depth 101 as the model has, in place of 50 as given\n"
    assert opt.depth == 101
    assert capsys.readouterr() == ("", said * (net != "resnext") + given)
    assert (opt.netType, opt.nEpochs, opt.drops) == ("resnext", 7, ("every", 30))
