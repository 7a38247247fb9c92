"""formats/torch7.py against trees that Torch7 wrote, a small interpreter of nn, and our nets."""

import gzip
import itertools
from pathlib import Path

import pytest
import torch
from support import torch7 as support
from support.lua_nn import at, build, modules, random_net, read, resnet8, same_output, whole
from support.t7_parts import written

from formats import t7, torch7
from formats.torch7_layout import layout
from models import depths
from runtime.errors import InputError

REFERENCE = Path(__file__).parent / "reference" / "torch7"
FACTS = support.facts()
KEYS = sorted(path.name.removesuffix(".t7.gz") for path in REFERENCE.glob("*.t7.gz"))

# every kind of net that the Lua files build, and those that were released before their last form
CONFIGS = [
    {"net": "resnet", "depth": 18, "shortcut": "B"},
    {"net": "resnet", "depth": 34, "shortcut": "A"},
    {"net": "resnet", "depth": 50, "shortcut": "C"},
    {"net": "resnet", "depth": 101, "shortcut": "B"},
    {"net": "resnet", "depth": 152, "shortcut": "B"},
    {"net": "resnet", "depth": 18, "shortcut": "B", "norm": "branch"},
    {"net": "resnet", "depth": 50, "shortcut": "B", "norm": "sum"},
    {"net": "preresnet", "depth": 18, "shortcut": "C"},
    {"net": "preresnet", "depth": 200, "shortcut": "B"},
    {"net": "preresnet", "depth": 50, "shortcut": "B", "norm": "each"},
    {"net": "preresnet", "depth": 20, "shortcut": "B", "stem": "cifar"},
    {"net": "resnet", "depth": 110, "shortcut": "A", "stem": "cifar"},
    {"net": "resnext", "depth": 50, "form": ("resnext_C", 32, 4)},
    {"net": "resnext", "depth": 101, "form": ("resnext_C", 64, 4)},
    {"net": "resnext", "depth": 50, "form": ("resnext_B", 3, 5)},
    {"net": "resnext", "depth": 29, "form": ("resnext_C", 8, 64), "stem": "cifar"},
    {"net": "resnext", "depth": 29, "form": ("resnet", 1, 64), "stem": "cifar"},
    {"net": "resnext", "depth": 11, "form": ("resnext_A", 2, 8), "stem": "cifar"},
    {"net": "resnext", "depth": 11, "form": ("resnext_C", 1, 40), "stem": "cifar"},
    {"net": "preresnext", "depth": 20, "form": ("resnext_B", 2, 8), "stem": "cifar"},
    {
        "net": "resnext",
        "depth": 20,
        "form": ("resnext_A", 2, 8),
        "shortcut": "none",
        "stem": "cifar",
    },
    {"net": "resnext", "depth": 11, "form": ("resnet", 1, 64), "shortcut": "A", "stem": "cifar"},
]


def filled(key):
    """The tree as Torch7 wrote it: the hollow one with formula weights and stored statistics."""
    tree = t7.loads(gzip.decompress((REFERENCE / f"{key}.t7.gz").read_bytes()))
    numbers, offset, norms = support.numbers(key), 0, 0
    todo = iter(FACTS[key]["parameters"])
    for _, module in modules(tree):
        for field in ("weight", "bias"):
            if field in module:
                kind, name, shape, center, half = next(todo)
                assert module.typename.endswith(kind) and name == field
                assert list(module[field].shape) == shape
                module[field] = support.fill(shape, 1000, center, half, offset).float()
                offset += module[field].numel()
        if "running_mean" in module:
            end = norms + len(module["running_mean"])
            for field in ("running_mean", "running_var"):
                module[field] = torch.from_numpy(numbers[f"bn_{field}"][norms:end]).float()
            norms = end
    assert next(todo, None) is None
    return tree


@pytest.mark.parametrize("key", KEYS)
def test_a_net_of_torch7_computes_what_it_did(key):
    config, state = torch7.from_t7(filled(key))
    assert config == FACTS[key]["config"]
    net = build(config)
    net.load_state_dict(state, assign=True)
    # our parameters() are the Lua's getParameters(), so one flat tensor serves both
    assert [name for name in state if name.endswith(("weight", "bias"))] == [
        name for name, _ in net.named_parameters()
    ]
    input, _ = support.batch(FACTS[key]["batch"], config["classes"], 1)
    with torch.no_grad():
        output = net.double().eval()(input)
    theirs = torch.from_numpy(support.numbers(key)["out_eval"])
    assert (output - theirs).norm() <= 1e-12 * theirs.norm()  # an independent rebuild: 1e-14


@pytest.mark.parametrize("key", KEYS)
def test_what_we_write_is_what_torch7_wrote(key):
    theirs = filled(key)
    ours = torch7.to_t7(*torch7.from_t7(theirs))
    buffers = (t7.Table, t7.Storage)  # sizes of the last batch, among others
    for (path, module), (other_path, other) in zip(modules(ours), modules(theirs), strict=True):
        where = f"{path} {other.typename}"
        assert (path, module.typename, module.version) == (
            other_path,
            other.typename,
            other.version,
        )
        for field, value in module.items():
            found = other[field]
            assert type(value) is type(found), f"{where}.{field}"
            if isinstance(value, torch.Tensor):
                assert (value.shape, value.dtype) == (found.shape, found.dtype), f"{where}.{field}"
                assert field.startswith("grad") or torch.equal(value, found), f"{where}.{field}"
            elif field != "train" and not isinstance(value, buffers):
                assert value == found, f"{where}.{field}"
        # what only they have is made when a module runs, or tells of the last batch
        made = "autotunerHash convDescData iSize pad stride mode nElem addBuffer save_mean save_std"
        made += " input_offset output_offset weight_offset"
        assert set(other) - set(module) <= set(made.split()), where


@pytest.mark.parametrize("key", ["resnet18_imagenet", "preresnet50_imagenet"])
def test_parameters_of_large_nets_are_torch7s(key):
    net = random_net(FACTS[key]["config"])
    tree = torch7.to_t7(net.config, net.state_dict())
    found = []
    for _, module in modules(tree):
        kind = module.typename.split(".")[1]
        for field in ("weight", "bias"):
            if field in module:
                found.append([kind, field, list(module[field].shape)])
    assert found == [parameter[:3] for parameter in FACTS[key]["parameters"]]


def layers(node):
    """{name: node} of the layers in a layout, in the tree's order."""
    found = {node.name: node} if node.name else {}
    for child in node.children:
        found |= layers(child)
    return found


def configs_of(net, stem):
    """Every kind of block, place of batch norm, form and shortcut of a net."""
    shortcuts = ("A", "B", "C", "none")
    if net.endswith("resnext"):
        forms = itertools.product(depths.BOTTLENECKS, [3], [5])
        sizes = [{"form": form, "depth": 50 if stem == "imagenet" else 20} for form in forms]
    else:
        norms = ("each", "branch") if net == "preresnet" else ("each", "branch", "sum")
        known = (18, 50) if stem == "imagenet" else (14,)
        sizes = [{"norm": norm, "depth": depth} for norm in norms for depth in known]
    for size, shortcut in itertools.product(sizes, shortcuts):
        yield whole({"net": net, "stem": stem, "shortcut": shortcut, **size})


@pytest.mark.parametrize("stem", depths.STEMS)
@pytest.mark.parametrize("net", depths.NETS)
def test_the_layout_has_the_layers_of_our_nets(net, stem):
    for config in configs_of(net, stem):
        model = build(config)
        blocks = depths.stages(net, stem, config["depth"], config.get("bottleneck"))
        found = layers(layout(model.config, *blocks))
        shapes = {
            f"{name}.{field}": shape
            for name, node in found.items()
            for field, shape in node.shapes.items()
        }
        state = {n: t.shape for n, t in model.state_dict().items() if "num_batches" not in n}
        assert shapes == state, config
        parameters = [name for name in shapes if "running" not in name]
        assert parameters == [name for name, _ in model.named_parameters()], config
        for name, node in found.items():
            if node.class_name == "SpatialConvolution":
                conv, numbers = model.get_submodule(name), node.numbers
                assert conv.stride == (numbers["dH"], numbers["dW"]), (config, name)
                assert conv.padding == (numbers["padH"], numbers["padW"]), (config, name)
                assert conv.groups == numbers["groups"], (config, name)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: "-".join(map(str, config.values())))
def test_every_configuration_is_recognised(config):
    config = whole(config)
    net = build(config)
    # a zero in place of each number: only names and shapes are asked
    state = {name: torch.zeros(()).expand(p.shape) for name, p in net.state_dict().items()}
    found, read_state = torch7.from_t7(torch7.to_t7(config, state))
    assert found == config
    assert {n: t.shape for n, t in read_state.items()} == {n: t.shape for n, t in state.items()}
    parameters = dict(net.named_parameters())
    flat = torch.zeros(()).expand(sum(p.numel() for p in parameters.values()))
    assert list(torch7.split(flat, read_state)) == list(parameters)


@pytest.mark.parametrize(
    "config",
    [
        {"net": "resnet", "depth": 18, "shortcut": "B", "norm": "branch"},
        {"net": "resnet", "depth": 50, "shortcut": "B", "norm": "sum"},
        {"net": "preresnet", "depth": 18, "shortcut": "B", "norm": "each"},
        {"net": "preresnet", "depth": 18, "shortcut": "B"},
        {"net": "resnext", "depth": 11, "form": ("resnext_C", 2, 8), "stem": "cifar"},
        {"net": "resnext", "depth": 11, "form": ("resnext_B", 2, 8), "stem": "cifar"},
        {"net": "resnext", "depth": 11, "form": ("resnext_A", 2, 8), "stem": "cifar"},
        {"net": "preresnext", "depth": 20, "form": ("resnext_B", 2, 8), "stem": "cifar"},
        {
            "net": "resnext",
            "depth": 11,
            "form": ("resnet", 1, 64),
            "shortcut": "A",
            "stem": "cifar",
        },
        {"net": "resnet", "depth": 8, "shortcut": "none", "stem": "cifar"},
    ],
    ids=lambda config: "-".join(map(str, config.values())),
)
def test_trees_compute_what_our_nets_do(config):
    net = random_net(whole(config))
    tree = torch7.to_t7(net.config, net.state_dict())
    assert same_output(net, tree)
    tree = t7.loads(written(tree))
    places = [value for _, module in modules(tree) for value in module.values()]
    mutable = [value for value in places if isinstance(value, (torch.Tensor, t7.Table, t7.Storage))]
    assert len({id(value) for value in mutable}) == len(mutable)  # nothing is shared by accident
    assert "gradInput" not in tree["modules"][1] and tree["modules"][1]["_type"].endswith(
        "DoubleTensor"
    )
    assert same_output(read(tree), tree)


def test_old_batch_norm_and_class_names():
    _, tree = resnet8(shortcut="B")
    for _, module in modules(tree):
        if "running_var" in module:
            module.version = 1
            module["running_std"] = (module.pop("running_var") + module["eps"]).pow(-0.5)
        if module.typename == "cudnn.SpatialConvolution":
            module.typename = "nn.SpatialConvolution"
            del module["groups"], module["padW"]
            module["padding"] = module["padH"]
        module.typename = module.typename.replace("nn.SpatialBatch", "fbnn.SpatialBatch")
    for _, module in modules(tree):  # the interpreter wants padW
        module.get("padding") is not None and module.update(padW=module["padding"])
    assert same_output(read(tree), tree)
    first = at(tree, "1")
    first.typename, first["weight"] = "nn.SpatialConvolutionMM", first["weight"].reshape(16, 27)
    assert read(tree)


def test_data_parallel_table_around_a_net():
    net, tree = resnet8()
    parallel = t7.Object("nn.DataParallelTable", {"modules": t7.Table({1: tree})}, 3)
    parallel.header = t7.Table({1: 1, 2: 2})
    assert same_output(read(t7.loads(written(parallel))), tree)


@pytest.mark.parametrize("norm", ["each", "branch", "sum"])
def test_biases_of_convolutions_go_into_the_batch_norm_behind(norm):
    _, tree = resnet8(shortcut="B", norm=norm)
    for _, module in modules(tree):
        if "SpatialConvolution" in module.typename:
            module["bias"] = torch.randn(module["nOutputPlane"]).double()
    assert same_output(read(tree), tree)
    for _, module in modules(tree):  # biases of zero are in the nets that were released
        if "SpatialConvolution" in module.typename:
            module["bias"].zero_()
    assert same_output(read(tree), tree)


def test_the_released_resnet_200_has_a_copy_before_its_last_batch_norm():
    net = random_net(whole({"net": "preresnet", "depth": 18, "norm": "each"}))
    tree = torch7.to_t7(net.config, net.state_dict())
    parts = tree["modules"].array()
    parts.insert(8, t7.Object("nn.Copy", {"dontCast": True}))
    tree["modules"] = t7.Table(enumerate(parts, 1))
    assert read(tree).config["norm"] == "each" and same_output(read(tree), tree)


def nested(parts, start, end):
    """The modules of a Sequential, some of them in another one."""
    fields = {"modules": t7.Table(enumerate(parts[start:end], 1))}
    return [*parts[:start], t7.Object("nn.Sequential", fields), *parts[end:]]


@pytest.mark.parametrize("where", [(0, 6), (0, 3), (1, 2), (2, 8), (0, 8), (3, 3)])
def test_a_sequential_may_be_inside_another(where):
    """As in the published ResNeXts: the branch is ((conv, bn, relu, conv, bn, relu), conv, bn)."""
    config = {"net": "resnext", "depth": 11, "form": ("resnext_C", 2, 8), "stem": "cifar"}
    net = random_net(whole(config))
    tree = torch7.to_t7(net.config, net.state_dict())
    branches = [m for _, m in modules(tree) if len(m.get("modules", ())) == 8 and m is not tree]
    assert len(branches) == 3
    for branch in branches:
        parts = nested(branch["modules"].array(), *where)
        branch["modules"] = t7.Table(enumerate(parts, 1))
    assert read(tree).config == net.config and same_output(read(tree), tree)


def test_momentum_is_split_by_parameter():
    net, tree = resnet8()
    _, state = torch7.from_t7(tree)
    flat = torch.arange(float(sum(p.numel() for p in net.parameters())))
    parts = torch7.split(flat, state)
    assert list(parts) == [name for name, _ in net.named_parameters()]
    assert torch.equal(torch.cat([part.flatten() for part in parts.values()]), flat)
    assert all(parts[name].shape == p.shape for name, p in net.named_parameters())
    with pytest.raises(InputError, match="numbers for a net of"):
        torch7.split(flat[1:], state)
