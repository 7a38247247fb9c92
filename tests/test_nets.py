"""The nets against the original under Torch7, against torchvision and the paper's sizes."""

import importlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from support import torch7
from support.nets import shake
from torch import fx
from torchvision.models.feature_extraction import create_feature_extractor

from models.blocks import StridedIdentity
from models.preresnet import preresnet
from models.preresnext import preresnext
from models.resnet import resnet
from models.resnext import resnext

FACTS = torch7.facts()
TRAINED = [key for key in FACTS if key != "preresnet50_imagenet"]  # that one has no training run

# Torch7 and an independent float64 rebuild in PyTorch agreed to 1e-14 before a step and to 2e-12
# after three steps at learning rate 0.1; the order of summation is all that differs.
TOLERANCE = 1e-9


def build(config):
    arguments = dict(config)
    name = arguments.pop("net")
    return getattr(importlib.import_module(f"models.{name}"), name)(**arguments)


def reference_net(key):
    facts, numbers = FACTS[key], torch7.numbers(key)
    net = build(facts["config"])
    mean, var = numbers["bn_running_mean"], numbers["bn_running_var"]
    return torch7.fill_net(net, facts["parameters"], mean, var), facts, numbers


def batches(facts):
    classes = facts["config"]["classes"]
    return [torch7.batch(facts["batch"], classes, step) for step in (1, 2, 3)]


def close(ours, theirs):
    """Relative L2 difference below TOLERANCE."""
    ours = np.asarray(ours.detach() if isinstance(ours, torch.Tensor) else ours)
    return np.linalg.norm(ours - theirs) <= TOLERANCE * np.linalg.norm(theirs)


def check_tensors(tensors, name, facts, numbers):
    """Sum and norm of every tensor, and a sample of all their values."""
    assert close([t.sum().item() for t in tensors], numbers[f"{name}_sums"])
    assert close([t.norm().item() for t in tensors], numbers[f"{name}_norms"])
    assert close(torch7.flat(tensors)[:: facts["stride"]], numbers[f"{name}_sample"])


def check_statistics(net, when, numbers):
    for which in ("mean", "var"):
        values = torch7.flat([getattr(norm, f"running_{which}") for norm in torch7.norms(net)])
        assert close(torch7.thin(values), numbers[f"bn_running_{which}_{when}"])


def check_gradient(net, facts, numbers):
    gradients = [parameter.grad for parameter in net.parameters()]
    check_tensors(gradients, "grad", facts, numbers)
    for name, index in facts["chosen"].items():
        if f"grad_{name}" in numbers:
            assert close(torch7.thin(gradients[index].flatten()), numbers[f"grad_{name}"])


@pytest.mark.parametrize("key", FACTS)
def test_evaluation_is_torch7s(key):
    net, facts, numbers = reference_net(key)
    net.eval()
    (input, target), *_ = batches(facts)
    with torch.no_grad():
        output = net(input)
    assert close(output, numbers["out_eval"])
    assert close(F.cross_entropy(output, target), numbers["loss_eval"])


@pytest.mark.parametrize("key", TRAINED)
def test_three_training_steps_are_torch7s(key):
    net, facts, numbers = reference_net(key)
    net.train()
    sgd = torch.optim.SGD(net.parameters(), 0.1, 0.9, nesterov=True, weight_decay=5e-4)
    for step, (input, target) in enumerate(batches(facts), 1):
        sgd.zero_grad()
        output = net(input)
        output.retain_grad()
        loss = F.cross_entropy(output, target)
        loss.backward()
        assert close(loss, numbers["train_losses"][step - 1])
        if step == 1:
            assert close(output, numbers["out_train"])
            assert close(loss, numbers["loss_train"])
            assert close(output.grad, numbers["grad_output"])
            check_gradient(net, facts, numbers)
            check_statistics(net, "after", numbers)
        sgd.step()
        check_tensors(list(net.parameters()), f"params_step{step}", facts, numbers)
    momentum = [sgd.state[parameter]["momentum_buffer"] for parameter in net.parameters()]
    check_tensors(momentum, "momentum_step3", facts, numbers)
    check_statistics(net, "step3", numbers)
    with torch.no_grad():
        assert close(net.eval()(batches(facts)[0][0]), numbers["out_eval_step3"])


@pytest.mark.parametrize("key", FACTS)
def test_modules_are_torch7s_in_kind_and_order(key):
    kinds = {
        "Conv2d": "SpatialConvolution",
        "BatchNorm2d": "SpatialBatchNormalization",
        "Linear": "Linear",
    }
    with torch.device("meta"):
        net = build(FACTS[key]["config"])
    ours = [
        [kinds[type(module).__name__], name, list(parameter.shape)]
        for module in net.modules()
        for name, parameter in module.named_parameters(recurse=False)
    ]
    assert ours == [row[:3] for row in FACTS[key]["parameters"]]


@pytest.mark.parametrize("key", [key for key in FACTS if "imagenet" not in key])
def test_initialisation_has_torch7s_statistics(key):
    # Another generator, so mean and deviation only: both samples scatter about the true value
    # by deviation / sqrt(n) and deviation / sqrt(2n); 6 of those, in about 300 comparisons.
    torch.manual_seed(1)
    net = build(FACTS[key]["config"])
    for parameter, (mean, std) in zip(net.parameters(), FACTS[key]["init_seed1"]):
        n = parameter.numel()
        assert abs(parameter.mean().item() - mean) <= 6 * std * math.sqrt(2 / n)
        if n > 1:
            assert abs(parameter.std().item() - std) <= 6 * std * math.sqrt(1 / n)


def test_initial_deviation_counts_the_layers_outputs_not_the_groups():
    torch.manual_seed(2)
    weight = resnext(29, 8, 64, 10, "cifar").layer1[0].conv2.weight  # (512, 64, 3, 3), 8 groups
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 512)), rel=0.01)
    weight = resnext(29, 8, 64, 10, "cifar", bottleneck="resnext_A").layer1[0].paths[3].conv2.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.03)


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())


def test_parameter_counts():
    # the README of the original and its paper (34.4M, 68.1M), pycls's table, torchvision's page
    with torch.device("meta"):
        assert count(resnext(29, 8, 64, 10, "cifar")) == 34_426_698
        assert count(resnext(29, 16, 64, 10, "cifar")) == 68_155_210
        assert count(resnext(50, 32, 4)) == 25_028_904
        assert count(resnext(101, 32, 4)) == 44_177_704
        assert count(resnext(101, 64, 4)) == 83_455_272
        assert count(resnext(50)) == count(resnext(50, bottleneck="resnet")) == 25_557_032
        assert count(resnet(50)) == 25_557_032
        assert count(resnet(101)) == 44_549_160
        assert count(resnet(56, 10, "cifar")) == 855_770
        assert count(resnet(110, 10, "cifar")) == 1_730_714
        # paths instead of groups: the same weights, and batch norm still one value a channel
        assert count(resnext(29, 8, 64, 10, "cifar", bottleneck="resnext_A")) == 34_426_698
        assert count(resnext(29, 8, 64, 10, "cifar", bottleneck="resnext_B")) == 34_426_698


TORCHVISION = {
    "resnext50_32x4d": lambda: resnext(50, 32, 4, classes=7),
    "resnet50": lambda: resnet(50, classes=7),
    "resnet18": lambda: resnet(18, classes=7),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_weights_and_outputs_are_torchvisions(name):
    torch.manual_seed(3)
    theirs = getattr(torchvision.models, name)(num_classes=7).double().eval()
    ours = TORCHVISION[name]().double().eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    input = torch.randn(1, 3, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(input), theirs(input), rtol=1e-10, atol=1e-12)


def preactivated_branch(x, state, name, stride, groups):
    """BN-ReLU-conv three times, written out once more from the paper on identity mappings."""

    def norm(x, k):
        weights = (state[f"{name}.bn{k}.{part}"] for part in ("weight", "bias"))
        return F.relu(F.batch_norm(x, None, None, *weights, training=True))

    x = F.conv2d(x, state[f"{name}.conv1.weight"])
    x = F.conv2d(norm(x, 1), state[f"{name}.conv2.weight"], None, stride, 1, 1, groups)
    return F.conv2d(norm(x, 2), state[f"{name}.conv3.weight"])


def test_preresnext_is_preresnets_pattern_over_grouped_convolutions():
    torch.manual_seed(4)
    net = preresnext(11, 4, 8, 10, "cifar").double().train()
    for norm in torch7.norms(net):
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.uniform_(-0.5, 0.5)
    state = net.state_dict()
    input = torch.randn(3, 3, 32, 32, dtype=torch.float64)

    def active(x, name):
        weights = (state[f"{name}.{part}"] for part in ("weight", "bias"))
        return F.relu(F.batch_norm(x, None, None, *weights, training=True))

    x = F.conv2d(input, state["conv1.weight"], None, 1, 1)
    for name, stride in (("layer1.0", 1), ("layer2.0", 2), ("layer3.0", 2)):
        x = active(x, f"{name}.bn0")  # branch and shortcut begin behind batch norm and ReLU
        short = F.conv2d(x, state[f"{name}.downsample.0.weight"], None, stride)
        x = preactivated_branch(x, state, name, stride, 4) + short
    x = active(x, "bn_last").mean((2, 3))
    expected = F.linear(x, state["fc.weight"], state["fc.bias"])
    torch.testing.assert_close(net(input), expected, rtol=1e-10, atol=1e-12)


def test_preresnext_of_one_wide_path_is_preresnet():
    torch.manual_seed(5)
    ours = preresnext(50, 1, 64, 5).double().eval()
    theirs = preresnet(50, 5).double().eval()
    theirs.load_state_dict(ours.state_dict())
    input = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(input), theirs(input), rtol=0, atol=0)


@pytest.mark.parametrize("size", [64, 96, 320])
def test_any_image_size_with_the_imagenet_stem(size):
    net = resnet(18, 6).eval()
    with torch.no_grad():
        assert net.maps(torch.zeros(1, 3, size, size)).shape == (1, 512, size // 32, size // 32)
        assert net(torch.zeros(2, 3, size, size // 2)).shape == (2, 6)


def test_any_image_size_with_the_cifar_stem():
    net = resnext(11, 2, 8, 6, "cifar").eval()
    with torch.no_grad():
        assert net.maps(torch.zeros(1, 3, 48, 48)).shape == (1, 1024, 12, 12)
        assert net.features(torch.zeros(2, 3, 48, 40)).shape == (2, 1024)
        assert net(torch.zeros(2, 3, 48, 40)).shape == (2, 6)


MODULES = {
    "resnet": lambda: resnet(18, 5),
    "resnet, cifar, A": lambda: resnet(14, 5, "cifar", "A"),
    "resnet, sum": lambda: resnet(8, 5, "cifar", "none", norm="sum"),
    "preresnet": lambda: preresnet(18, 5),
    "preresnet, each": lambda: preresnet(18, 5, norm="each"),
    "preresnet, cifar, C": lambda: preresnet(14, 5, "cifar", "C"),
    "resnext": lambda: resnext(11, 2, 4, 5, "cifar", "B"),
    "resnext_A": lambda: resnext(11, 2, 4, 5, "cifar", "A", "resnext_A"),
    "preresnext_B": lambda: preresnext(11, 2, 4, 5, "cifar", "B", "resnext_B"),
}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_called_once_in_the_order_of_the_children(name):
    """So hooks on stages fire, replaced modules count, and cuts of the children are the net's."""
    net, called = shake(MODULES[name]()), []
    for module in net.modules():
        module.register_forward_hook(lambda module, *_: called.append(module))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        net(x)
        containers = (torch.nn.ModuleList,)  # of form A's and B's paths
        assert set(called) == {m for m in net.modules() if not isinstance(m, containers)}
        leaves = [module for module in net.modules() if not list(module.children())]
        assert [module for module in called if module in leaves] == leaves
        children = list(net.children())
        maps, features = (torch.nn.Sequential(*children[:end])(x) for end in (-2, -1))
        assert torch.equal(maps, net.maps(x)) and torch.equal(features.flatten(1), net.features(x))


@pytest.mark.parametrize("name", MODULES)
def test_torch_fx_sees_every_layer_as_one_step(name):
    """So feature extractors, fusion and quantization, which read the graph, work."""
    net = shake(MODULES[name]())
    traced = fx.symbolic_trace(net)
    steps = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    shortcuts = [name for name, m in net.named_modules() if isinstance(m, StridedIdentity)]
    leaves = [name for name, module in net.named_modules() if not list(module.children())]
    assert steps == [name for name in leaves if name not in shortcuts]
    assert getattr not in [node.target for node in traced.graph.nodes]  # a shape is no feature map
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(traced(x), net(x))
        features = create_feature_extractor(net, ["avgpool"])(x)["avgpool"]
        assert torch.equal(features.flatten(1), net.features(x))
