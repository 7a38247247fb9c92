"""How a net is asked for: by options, by its configuration, and in words when it does not exist."""

import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import models
import opts
from formats import model_files
from models.blocks import Basic, Net
from models.preresnet import preresnet
from models.preresnext import preresnext
from models.resnet import resnet
from models.resnext import resnext
from runtime.errors import InputError
from runtime.precision import Precision

NETS = [
    resnext(29, 2, 4, 10, "cifar", "C", "resnext_B"),
    resnext(29, 2, 4, 10, "cifar", preactivation=True),
    preresnext(20, 2, 4, 10, "cifar", "A", "resnext_A"),
    resnet(20, 100, "cifar", "A"),
    preresnet(20, 100, "cifar", "none"),
]


@pytest.mark.parametrize("net", NETS, ids=lambda net: f"{net.config['net']}-{net.config['depth']}")
def test_config_rebuilds_the_net(net):
    arguments = dict(net.config)
    name = arguments.pop("net")
    again = getattr(importlib.import_module(f"models.{name}"), name)(**arguments)
    again.load_state_dict(net.state_dict())
    assert again.config == net.config
    input = torch.randn(1, 3, 32, 32)
    assert torch.equal(again.eval()(input), net.eval()(input))


def options(**changes):
    values = {
        "dataset": "cifar10",
        "stem": "cifar",
        "depth": 29,
        "cardinality": 2,
        "baseWidth": 4,
        "shortcutType": "B",
        "bottleneckType": "resnext_C",
    }
    return SimpleNamespace(**{**values, **changes})


FORM = "Deploying ResNeXt bottleneck block form"
LINES = [
    ("resnext", {}, [f"{FORM} C (group convolution)", " | ResNet-29 cifar10"]),
    ("resnext", {"bottleneckType": "resnext_B"}, [f"{FORM} B", " | ResNet-29 cifar10"]),
    ("resnext", {"bottleneckType": "resnext_A"}, [f"{FORM} A", " | ResNet-29 cifar10"]),
    (
        "resnext",
        {"bottleneckType": "resnet", "dataset": "imagenet", "stem": "imagenet", "depth": 50},
        ["Deploying ResNet bottleneck block", " | ResNet-50 ImageNet"],
    ),
    ("preresnext", {}, [f"{FORM} C (group convolution)", " | ResNet-29 cifar10"]),
    ("resnet", {"depth": 20}, [" | ResNet-20 CIFAR-10"]),
    ("resnet", {"depth": 20, "dataset": "cifar100"}, [" | ResNet-20 CIFAR-100"]),
    ("preresnet", {"depth": 20, "dataset": "digits"}, [" | ResNet-20 digits"]),
    (
        "preresnet",
        {"depth": 18, "dataset": "imagenet", "stem": "imagenet"},
        [" | ResNet-18 ImageNet"],
    ),
]


@pytest.mark.parametrize(("name", "changes", "lines"), LINES)
def test_create_takes_the_options_and_prints_the_originals_lines(name, changes, lines, capsys):
    opt = options(**changes)
    with torch.device("meta"):
        net = importlib.import_module(f"models.{name}").create(opt, 7)
    assert capsys.readouterr().out.splitlines() == lines
    assert net.config["net"] == name
    assert net.config["depth"] == opt.depth
    assert net.config["stem"] == opt.stem
    assert net.fc.out_features == net.config["classes"] == 7
    if name == "resnext":
        asked = ("cardinality", "base_width", "shortcut", "bottleneck")
        assert [net.config[key] for key in asked] == [2, 4, "B", opt.bottleneckType]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: resnext(34), ["Invalid depth: 34", "resnext"]),
        (lambda: resnext(50, preactivation=True, stem="cifar"), ["preresnext", "9n+2"]),
        (lambda: preresnet(21, stem="cifar"), ["preresnet", "6n+2"]),
        (lambda: resnext(bottleneck="foo"), ["invalid bottleneck type: foo", "resnext_A"]),
        (lambda: resnet(shortcut="D"), ["invalid shortcut type: D", "A, B, C, none"]),
        (lambda: resnet(norm="every"), ["invalid place of batch norm: every", "each, branch, sum"]),
        (lambda: Basic(4, 4, 1, "B", "post"), ["invalid activation: post;", "no_preact"]),
        (lambda: Basic(4, 4, 1, "B", "preact", "no"), ["invalid place of batch norm: no;"]),
        (lambda: Net({}, "ImageNet", 4, [], None), ["invalid stem: ImageNet", "imagenet, cifar"]),
        (lambda: Precision("float16", "cpu"), ["unknown precision 'float16'", "half, bfloat16"]),
        (lambda: resnext(50, 32, 0), ["base width 0", "-baseWidth should be at least 1"]),
        (lambda: resnext(50, 0, 4), ["cardinality 0", "-cardinality"]),
    ],
)
def test_bad_arguments_are_told_in_one_sentence(make, words):
    with pytest.raises(InputError) as caught:
        make()
    text = str(caught.value)
    assert all(word in text for word in words)
    assert "\n" not in text


def test_bad_bottleneck_type_is_told_before_anything_is_printed(capsys):
    with pytest.raises(InputError, match="invalid bottleneck type: foo"):
        importlib.import_module("models.resnext").create(options(bottleneckType="foo"), 10)
    assert capsys.readouterr().out == ""


def test_the_net_in_the_readme_works(capsys):
    text = (Path(__file__).parent.parent / "models" / "README.md").read_text()
    code = text.split("```python\n")[2].split("```")[0]
    scope = {}
    exec(code, scope)  # documentation of this repository
    net = scope["create"](options(depth=5), 7)
    assert capsys.readouterr().out == " | Plain-5 cifar10\n"
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    arguments = {key: value for key, value in net.config.items() if key != "net"}
    assert list(scope[net.config["net"]](**arguments).state_dict()) == list(net.state_dict())
    with pytest.raises(InputError, match="plain -depth should be at least 2"):
        scope["create"](options(depth=1), 7)


@pytest.mark.parametrize("outputs, kept", [(2, False), (5, True)])
def test_a_model_is_left_as_it_is_only_where_that_can_be(outputs, kept, tmp_path):
    """With fewer outputs than the data has classes, -nClasses would be refused."""
    net = resnet(8, outputs, "cifar", "A")
    net.classes = net.input_spec = None
    model_files.write(str(tmp_path / "net.pth"), models.pack(net))
    words = f"-dataset cifar10 -netType resnet -retrain {tmp_path / 'net.pth'}"
    with pytest.raises(InputError, match="to fine-tune, give -resetClassifier true") as error:
        models.setup(opts.parse(words.split()), net, None, ["a", "b", "c"], torch.device("cpu"))
    assert str(error.value).endswith(f"; to keep its outputs, give -nClasses {outputs}") == kept
    assert ("-nClasses" in str(error.value)) == kept


@pytest.mark.parametrize("checkpoint, reset", [(None, ""), ({}, "-retrain with a model and ")])
def test_another_number_of_outputs_is_named(checkpoint, reset):
    net = resnet(8, 10, "cifar", "A")
    net.classes = None
    opt = opts.parse("-dataset cifar10 -depth 8 -nClasses 12".split())
    with pytest.raises(InputError) as error:
        models.setup(opt, net, checkpoint, list("abcdefghij"), torch.device("cpu"))
    assert str(error.value) == (
        f"the model has 10 classes, but -nClasses says 12: to fine-tune, give {reset}"
        "-resetClassifier true; to keep its outputs, give -nClasses 10"
    )


@pytest.mark.parametrize("data", ["cifar10", "digits", "imagenet"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_a_net_whose_first_layers_do_not_fit_the_data_gets_a_line(tmp_path, capsys, data, stem):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    depth = "18" if data == "imagenet" else "20"
    opt = opts.parse(["-dataset", data, "-depth", depth, "-data", str(tmp_path)])
    net = resnet(20 if stem == "cifar" else 18, 3, stem)
    models.setup(opt, net, None, ["a", "b", "c"], torch.device("cpu"))
    lines = capsys.readouterr().err.splitlines()
    line = f"=> the first layers of this net are for .*, but {data} has "
    assert [bool(re.match(line, found)) for found in lines] == [True] * (stem != opt.stem)
    assert ("; -trainCrop 64 makes" in "".join(lines)) == (stem == "cifar" and data == "imagenet")
    if data == "imagenet":
        small = opts.parse(["-depth", depth, "-data", str(tmp_path), "-trainCrop", "64"])
        models.setup(small, net, None, ["a", "b", "c"], torch.device("cpu"))
        assert capsys.readouterr().err == ""
