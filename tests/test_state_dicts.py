"""State dicts of other programs: third parties' nets compute the same, wrappers are found."""

import argparse
import collections
import datetime
import pathlib

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from support import lua_nn
from support.nets import refused, shake, small
from torch import nn

import models
from formats import model_files, state_dicts, t7, torch7, torch7_layout


def named(**parts):
    return nn.Sequential(collections.OrderedDict(parts))


def conv(inputs, outputs, size, stride=1, groups=1, bias=False):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=bias)


def resnext(first, expansion, stages, width, groups, block, bias=False):
    """The layers of a ResNeXt of one block a stage: (stem, blocks, classifier).

    block: makes one of (its convolutions and batch norms, those of its shortcut).
    """
    stem, inputs, blocks = [conv(3, 64, *first, bias=bias), nn.BatchNorm2d(64)], 64, []
    for i in range(stages):
        d, outputs, stride = width * 2**i, 64 * expansion * 2**i, 2 if i else 1
        layers = []
        for part in ((inputs, d, 1), (d, d, 3, stride, groups), (d, outputs, 1)):
            layers += [conv(*part, bias=bias), nn.BatchNorm2d(part[1])]
        shortcut = [conv(inputs, outputs, 1, stride, bias=bias), nn.BatchNorm2d(outputs)]
        blocks.append(block(layers, shortcut))
        inputs = outputs
    return stem, blocks, nn.Linear(inputs, 5)


class Named(nn.Module):
    """A net whose layers are called: its forward pass takes these in order."""

    def __init__(self, pool, order, **parts):
        super().__init__()
        self.pool, self.order = pool, order
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        first, norm, *stages, classifier = (getattr(self, name) for name in self.order)
        x = norm(first(x)).relu()
        x = nn.functional.max_pool2d(x, 3, 2, 1) if self.pool else x
        for stage in stages:
            x = stage(x)
        return classifier(x.mean((2, 3)))


class Block(nn.Module):
    """A block whose layers are called `names`, and its shortcut's `short`."""

    def __init__(self, layers, shortcut, names, short):
        super().__init__()
        self.names, self.short = names.split(), short.split(".")
        for name, layer in zip(self.names, layers):
            self.add_module(name, layer)
        self.add_module(self.short[0], named(**dict(zip(self.short[1].split(","), shortcut))))

    def forward(self, x):
        out = x
        for i, name in enumerate(self.names):
            out = getattr(self, name)(out)
            out = out.relu() if i in (1, 3) else out
        return (out + getattr(self, self.short[0])(x)).relu()


def prlz77(expansion=4, groups=2):
    """prlz77's and bearpaw's; another `widen_factor` is another expansion."""
    names = "conv_reduce bn_reduce conv_conv bn conv_expand bn_expand"
    short = "shortcut.shortcut_conv,shortcut_bn"
    stem, blocks, last = resnext(
        (3,), expansion, 3, 8, groups, lambda *parts: Block(*parts, names, short)
    )
    stages = {
        f"stage_{i}": named(**{f"stage_{i}_bottleneck_0": block})
        for i, block in enumerate(blocks, 1)
    }
    parts = {"conv_1_3x3": stem[0], "bn_1": stem[1], **stages, "classifier": last}
    return Named(False, list(parts), **parts)


TORCHVISION = "conv1 bn1 conv2 bn2 conv3 bn3"


def kuangliu(expansion=4, groups=2):
    """kuangliu's: the first convolution is 1x1, blocks have twice as many outputs as inputs."""
    width = 32 * expansion
    stem, blocks, last = resnext(
        (1,), expansion, 3, width, groups, lambda *p: Block(*p, TORCHVISION, "shortcut.0,1")
    )
    stages = {f"layer{i}": nn.Sequential(block) for i, block in enumerate(blocks, 1)}
    parts = {"conv1": stem[0], "bn1": stem[1], **stages, "linear": last}
    return Named(False, list(parts), **parts)


def fbresnet():
    """Cadene's fbresnet: convolutions have a bias, as in the files of fb.resnet.torch."""
    stem, blocks, last = resnext(
        (7, 2), 4, 4, 64, 1, lambda *parts: Block(*parts, TORCHVISION, "downsample.0,1"), bias=True
    )
    stages = {f"layer{i}": nn.Sequential(block) for i, block in enumerate(blocks, 1)}
    parts = {"conv1": stem[0], "bn1": stem[1], **stages, "last_linear": last}
    return Named(True, list(parts), **parts)


@pytest.fixture
def shallow(monkeypatch):
    """ResNets and ResNeXts of one block a stage: "basic" has depth 10, "bottleneck" 14."""
    monkeypatch.setitem(models.depths._IMAGENET, 10, ("basic", (1, 1, 1, 1)))
    monkeypatch.setitem(models.depths._IMAGENET, 14, ("bottleneck", (1, 1, 1, 1)))
    for net, (depths, kind) in models.depths.NETS.items():
        monkeypatch.setitem(models.depths.NETS, net, ((*depths, 10, 14), kind))


@pytest.mark.parametrize(
    "make, arguments",
    [
        (prlz77, ()),
        (prlz77, (2, 8)),
        (kuangliu, ()),
        (kuangliu, (2, 4)),
        (kuangliu, (8, 8)),
        (fbresnet, ()),
    ],
)
def test_a_net_of_a_third_party_computes_the_same(make, arguments, tmp_path, shallow):
    theirs = shake(make(*arguments))
    wrapped = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    side = 32 if make is fbresnet else 8
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3)).double()
    for state in (theirs.state_dict(), wrapped):
        torch.save({"epoch": 3, "net": state}, tmp_path / "net.pth")
        ours = models.load_file(tmp_path / "net.pth").double().eval()
        with torch.inference_mode():
            torch.testing.assert_close(ours(x), theirs.double()(x), rtol=1e-6, atol=1e-6)
        theirs.float()


X = {"net": "resnext", "form": ("resnext_C", 4, 16)}
CONVERTED = [
    {"net": "resnet", "depth": 10, "norm": "branch"},  # ResNet-18 as it was released
    {"net": "resnet", "depth": 14, "norm": "sum"},  # ResNet-50
    {"net": "resnet", "depth": 14},
    {"net": "preresnet", "depth": 14, "norm": "each"},  # ResNet-200
    {"net": "preresnet", "depth": 10, "shortcut": "C"},
    {**X, "depth": 14},
    {**X, "depth": 20, "stem": "cifar"},
    {"net": "preresnext", "form": ("resnext_C", 4, 16), "depth": 11, "stem": "cifar"},
    {"net": "resnet", "depth": 20, "stem": "cifar"},
    {"net": "preresnet", "depth": 14, "stem": "cifar", "shortcut": "C"},
]


def clcarwin(module, place=""):
    """The state dict that clcarwin's convert_torch.py makes of a tree of Torch7."""
    if "modules" in module:
        parts = enumerate(module["modules"].array())
        return {k: t for i, part in parts for k, t in clcarwin(part, f"{place}{i}.").items()}
    place += "1." if module.typename == "nn.Linear" else ""
    fields = ("weight", "bias", "running_mean", "running_var")
    return {place + field: module[field] for field in fields if field in module}


def cadene(tree):
    """The state dict of Cadene's net, made of a tree: the classifier has a name of its own."""
    *trunk, (_, weight), (_, bias) = clcarwin(tree).items()
    return {**prefixed("features.", dict(trunk)), "last_linear.weight": weight} | {
        "last_linear.bias": bias
    }


@pytest.mark.parametrize(
    "config", CONVERTED, ids=lambda config: "-".join(map(str, config.values()))
)
def test_a_converted_net_of_torch7_computes_what_its_tree_does(config, shallow, tmp_path):
    net = lua_nn.random_net(lua_nn.whole(config))
    tree = torch7.to_t7(net.config, net.state_dict())
    for _, module in lua_nn.modules(tree):
        parts = module["modules"].array() if "modules" in module else ()
        if config["net"] == "resnext" and len(parts) == 8 and module is not tree:
            # as in the published files
            inner = t7.Object("nn.Sequential", {"modules": t7.Table(enumerate(parts[:6], 1))})
            module["modules"] = t7.Table(enumerate([inner, *parts[6:]], 1))
        if config["net"] == "resnet" and module.typename == "cudnn.SpatialConvolution":
            module["bias"] = torch.randn(module["nOutputPlane"]).double()
        if config["net"] == "preresnet" and module.typename == "cudnn.SpatialConvolution":
            module["bias"] = torch.zeros(module["nOutputPlane"]).double()
    for make, save in ((clcarwin, torch.save), (cadene, safetensors.torch.save_file)):
        save(make(tree), tmp_path / "net.pth")
        ours = models.load_file(tmp_path / "net.pth").eval()
        assert ours.config == net.config and lua_nn.same_output(ours, tree)


def test_the_released_resnet_200_is_recognised_when_converted():
    net = lua_nn.build(lua_nn.whole({"net": "preresnet", "depth": 200, "norm": "each"}))
    state = {name: torch.zeros(()).expand(t.shape) for name, t in net.state_dict().items()}
    found = {}

    def convert(node, place=""):
        for i, child in enumerate(node.children):
            convert(child, f"{place}{i}.")
        found.update({place + field: state[f"{node.name}.{field}"] for field in node.shapes})

    convert(torch7_layout.layout(net.config, *torch7_layout.counts(state)))
    assert state_dicts.convert(state_dicts.find(found)) == net.config


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_the_children_of_a_net_of_torchvision(name, tmp_path):
    with torch.device("meta"):
        net = getattr(torchvision.models, name)(num_classes=3)
    parts = list(net.children())
    for cut, last in ((parts[:-1], "fc"), (parts, "9"), (parts[:-1], "module.head.1")):
        state = {
            k: torch.ones(()).expand(t.shape) for k, t in nn.Sequential(*cut).state_dict().items()
        }
        state |= {
            f"{last}.{k}": torch.ones(()).expand(t.shape) for k, t in net.fc.state_dict().items()
        }
        found = state_dicts.find({"net": state})
        assert found.keys() == net.state_dict().keys()
        assert state_dicts.infer(found) == state_dicts.infer(net.state_dict())


# ---------- what programs save around weights ----------


@pytest.fixture(scope="module")
def state():
    return small().state_dict()


def without_classifier(state):
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def same_state(path, state, classifier=True):
    found = model_files.read(path, classifier)["model"]
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    "key",
    "state_dict model_state_dict net model_state module ema teacher model network weights params"
    " state backbone encoder best_state net_state_dict g_ema classifier.student 0".split(),
)
def test_the_one_state_dict_is_taken_whatever_its_key(key, state, tmp_path):
    saved = {"epoch": 3, "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2, 3, 3, 3)}}}}
    torch.save({**saved, key: state, "loss": torch.ones(3)}, tmp_path / "net.pth")
    same_state(tmp_path / "net.pth", state)
    torch.save({"run": {**saved, key: prefixed("module.", state)}}, tmp_path / "net.pth")
    same_state(tmp_path / "net.pth", state)


@pytest.mark.parametrize(
    "prefix",
    "module. backbone. encoder. module.encoder_q. model. _orig_mod. module.model._orig_mod. a.b.c."
    " features. net.0.".split(),
)
def test_what_stands_before_all_names_is_taken_off(prefix, state, tmp_path):
    torch.save(prefixed(prefix, state), tmp_path / "net.pth")
    same_state(tmp_path / "net.pth", state)
    torch.save({**prefixed(prefix, state), "other.weight": torch.ones(3)}, tmp_path / "net.pth")
    refused(tmp_path / "net.pth", "'other.weight' has no place", f"FILE:{prefix[:-1]} takes")
    same_state(f"{tmp_path / 'net.pth'}:{prefix[:-1]}", state)


@pytest.mark.parametrize(
    "name", ["fc", "linear", "classifier", "head", "last_linear", "fc.1", "head.fc", "model.fc"]
)
def test_a_classifier_of_another_name(name, state, tmp_path):
    last = {f"{name}.{part}": state[f"fc.{part}"] for part in ("weight", "bias")}
    torch.save({**prefixed("backbone.", without_classifier(state)), **last}, tmp_path / "net.pth")
    same_state(tmp_path / "net.pth", state)
    del last[f"{name}.bias"]
    torch.save({**without_classifier(state), **last}, tmp_path / "net.pth")
    same_state(tmp_path / "net.pth", {**state, "fc.bias": torch.zeros(3)})


def test_of_several_nets_one_is_named(state, tmp_path):
    path, other = tmp_path / "net.pth", {name: tensor * 0 for name, tensor in state.items()}
    torch.save({"student": prefixed("module.", other), "teacher": state}, path)
    refused(path, "it has 2 nets, student.module, teacher", "FILE:teacher")
    same_state(f"{path}:teacher", state)
    same_state(f"{path}:student", other)
    refused(f"{path}:third", "no net 'third'", "'teacher'")
    torch.save({"a:b": state, "c": other}, path)
    same_state(f"{path}:a:b", state)
    torch.save({"epoch_3": other, "net_ema": state}, path)
    refused(path, "FILE:net_ema")
    for worse, better in (("model", "model_ema"), ("state_dict", "state_dict_ema")):
        torch.save({worse: other, better: prefixed("module.", state)}, path)
        same_state(path, state)
        same_state(f"{path}:{better}", state)


HEADS = {
    "none": {},
    "SwAV": {
        "module.projection_head.0.weight": torch.ones(8, 1024),
        "module.prototypes.weight": torch.ones(8, 8),
    },
    "MoCo": {
        "module.fc.0.weight": torch.ones(8, 1024),
        "module.fc.2.weight": torch.ones(2, 8),
        "queue": torch.ones(3, 3),
        "queue_ptr": torch.zeros(1, dtype=torch.long),
    },
    "MoCo v1": {"module.fc.weight": torch.ones(8, 1024), "module.queue": torch.ones(3, 3)},
}


@pytest.mark.parametrize("head", HEADS)
def test_weights_without_a_classifier_are_a_trunk(head, state, tmp_path):
    trunk, path = without_classifier(state), tmp_path / "net.pth"
    torch.save({"state_dict": {**prefixed("module.", trunk), **HEADS[head]}}, path)
    refused(path, "-resetClassifier true" if head != "MoCo v1" else "'module.queue' has no place")
    net = models.load(path, classifier=False)
    assert not net.fc.weight.any() and net.fc.out_features == 1
    expected = models.from_config({**net.config, "classes": 3}).eval()
    expected.load_state_dict(state)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        torch.testing.assert_close(net.features(x), expected.features(x))
    torch.save({**trunk, "layer1.0.se.fc1.weight": torch.ones(1)}, path)
    with pytest.raises(models.loading.InputError, match="'layer1.0.se.fc1.weight' has no place"):
        models.load(path, classifier=False)


class Settings:
    """An options object of another program."""


class Attributes(dict):
    """A dict of another program with attributes."""


def settings():
    made = Settings()
    made.rate, made.folder = 0.1, pathlib.Path("x")
    return made


def attributes():
    made = Attributes(rate=0.1)
    made.folder = pathlib.Path("x")
    return made


VALUES = {
    "number": lambda: np.float64(3.5),
    "array": lambda: np.arange(5),
    "random": np.random.get_state,
    "path": lambda: pathlib.Path("/a/b"),
    "date": datetime.datetime.now,
    "set": lambda: {1, "a"},
    "frozenset": lambda: frozenset([1]),
    "defaultdict": lambda: collections.defaultdict(list, {"a": [1]}),
    "deque": lambda: collections.deque([1, 2]),
    "namespace": lambda: argparse.Namespace(lr=0.1),
    "options": settings,
    "attributes": attributes,
    "bytes": lambda: b"abc",
    "range": lambda: range(3),
    "scaler": lambda: torch.amp.GradScaler("cpu"),
    "module": lambda: nn.Sequential(nn.Linear(2, 3)),
    "optimizer": lambda: torch.optim.SGD([torch.ones(2, requires_grad=True)], 0.1),
}


@pytest.mark.parametrize("kind", VALUES)
def test_values_beside_the_weights_are_skipped(kind, state, tmp_path):
    path = tmp_path / "net.pth"
    for zipped in (True, False):
        saved = {"state_dict": state, "x": VALUES[kind](), "y": [VALUES[kind]()]}
        torch.save(saved, path, _use_new_zipfile_serialization=zipped or kind == "module")
        same_state(path, state)


@pytest.mark.parametrize(
    "value", [np.zeros(5000), {(1, 2): 3}, 10**30, bytearray(3), torch.eye(3).to_sparse()], ids=type
)
def test_values_that_cannot_be_skipped_say_how_to_make_another_file(value, state, tmp_path):
    torch.save({"state_dict": state, "x": value}, tmp_path / "net.pth")
    refused(tmp_path / "net.pth", "; torch.save(net.state_dict(), FILE) writes what can be read")


def test_a_dict_of_another_class_may_hold_the_weights(state, tmp_path):
    for saved in (collections.defaultdict(int, state), Attributes(state), Attributes(net=state)):
        torch.save(saved, tmp_path / "net.pth")
        same_state(tmp_path / "net.pth", state)


@pytest.mark.parametrize(
    "count",
    [torch.tensor(450_360).half(), torch.tensor(3.0), torch.tensor(3, dtype=torch.int32)]
    + [torch.tensor([3]), torch.tensor(torch.nan), 3],
)
def test_counters_of_another_type_are_reset(count, state, tmp_path):
    saved = {name: count if "tracked" in name else tensor for name, tensor in state.items()}
    torch.save(saved, tmp_path / "net.pth")
    found = model_files.read(tmp_path / "net.pth")["model"]
    assert all(found[name] == 0 for name in state if "tracked" in name)


def test_a_state_dict_in_a_list(state, tmp_path):
    path = tmp_path / "net.pth"
    for saved in ([state], (state, {"momentum": torch.ones(3)}), {"nets": [None, state]}):
        torch.save(saved, path)
        same_state(path, state)
    torch.save([state, prefixed("module.", state)], path)
    refused(path, "it has 2 nets, 0, 1.module", "FILE:0")
    same_state(f"{path}:1", state)


def test_another_programs_config(state, tmp_path):
    saved = {"config": {"net": "resnet18"}, "classes": 3}
    for key in ("model", "state_dict"):
        torch.save({**saved, key: state}, tmp_path / "net.pth")
        same_state(tmp_path / "net.pth", state)


def test_nets_that_compute_something_else_are_named(state, tmp_path):
    from models.resnet import resnet

    path = tmp_path / "net.pth"
    akamaster = resnet(8, 10, "cifar", "A").state_dict()
    torch.save({name.replace("fc.", "linear."): t for name, t in akamaster.items()}, path)
    refused(path, "akamaster's", "both sides")
    fourth = {name.replace("layer3", "layer4"): t for name, t in state.items() if "layer3" in name}
    torch.save({**state, **fourth}, path)
    refused(path, "4 stages after a 3x3 first convolution, where our nets have 3")
