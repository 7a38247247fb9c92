"""Test support: random nets, .t7 trees of nn's modules, and the function that a tree computes."""

import importlib

import torch
import torch.nn.functional as F

from formats import t7, torch7


def whole(config):
    """A configuration with all fields, as net.config has them."""
    form = config.get("form")
    config = {"classes": 7, "stem": "imagenet", "shortcut": "B", **config}
    if form:
        del config["form"]
        config |= dict(zip(("bottleneck", "cardinality", "base_width"), form))
    return config


def build(config):
    """A net on the meta device, without values for its parameters."""
    arguments = dict(config)
    name = arguments.pop("net")
    with torch.device("meta"):
        return getattr(importlib.import_module(f"models.{name}"), name)(**arguments)


def random_net(config):
    """A net in float64 whose every tensor is filled with random values."""
    net = build(config).to_empty(device="cpu").double()
    noise = torch.randn(4099, generator=torch.Generator().manual_seed(3)).double()
    for i, (name, tensor) in enumerate(net.state_dict().items()):
        values = noise.roll(i).repeat(tensor.numel() // 4099 + 1)[: tensor.numel()]
        values = values.view(tensor.shape)
        if tensor.ndim > 1:
            tensor.copy_(values * (2 / tensor[0].numel()) ** 0.5)
        elif tensor.ndim == 1:
            positive = "var" in name or "weight" in name
            tensor.copy_(values.abs() + 0.5 if positive else values)
        else:
            tensor.zero_()
    return net.eval()


def modules(module, path=""):
    """[(path, module), ...] of a tree, in the order of getParameters()."""
    yield path, module
    for i, child in enumerate(module.get("modules", t7.Table()).array(), 1):
        yield from modules(child, f"{path}.{i}".lstrip("."))


def at(tree, path):
    for i in path.split("."):
        tree = tree["modules"][int(i)]
    return tree


def forward(module, x):
    """The output of a tree in evaluation mode, by nn's documentation of each module."""
    kind, get = module.typename.split(".")[1], module.get
    parts = get("modules", t7.Table()).array()
    if kind == "Sequential":
        for part in parts:
            x = forward(part, x)
        return x
    if kind == "ConcatTable":
        return [forward(part, x) for part in parts]
    if kind == "Concat":
        return torch.cat([forward(part, x) for part in parts], get("dimension") - 1)
    if kind == "DataParallelTable":
        return forward(parts[0], x)
    if kind == "CAddTable":
        return sum(x[1:], x[0])
    if kind == "JoinTable":
        return torch.cat(x, get("dimension") - 1)
    window = [get("kH"), get("kW")], [get("dH"), get("dW")], [get("padH", 0), get("padW", 0)]
    if kind == "SpatialConvolution":
        assert module["weight"].shape[2:] == tuple(window[0])
        return F.conv2d(x, module["weight"], get("bias"), *window[1:], 1, get("groups", 1))
    if kind == "SpatialMaxPooling":
        return F.max_pool2d(x, *window)
    if kind == "SpatialAveragePooling":
        size = min(get("kH"), x.shape[2])  # nets for 224 pixels are tested on 32
        return F.avg_pool2d(x, size, *window[1:])
    if kind == "SpatialBatchNormalization":
        if "running_std" in module:
            normal = (x - get("running_mean")[:, None, None]) * get("running_std")[:, None, None]
            return normal * get("weight")[:, None, None] + get("bias")[:, None, None]
        statistics = get("running_mean"), get("running_var")
        return F.batch_norm(x, *statistics, get("weight"), get("bias"), eps=get("eps"))
    if kind == "View":
        return x.reshape(-1, *get("size").data.tolist())
    if kind == "Linear":
        return F.linear(x, get("weight"), get("bias"))
    if kind == "MulConstant":
        return x * get("constant_scalar")
    return {"ReLU": F.relu, "Identity": lambda x: x, "Copy": lambda x: x}[kind](x)


def same_output(net, tree, tolerance=1e-9):
    """Whether net and tree agree in float64.

    Their orders of summation differ, and many layers let 1e-16 grow.
    """
    torch.manual_seed(1)
    x = torch.randn(1, 3, 32, 32).double()
    with torch.no_grad():
        ours, theirs = net(x), forward(tree, x)
    return (ours - theirs).norm() <= tolerance * theirs.norm()


def read(tree):
    config, state = torch7.from_t7(tree, "net.t7")
    net = build(config)
    net.load_state_dict({name: tensor.double() for name, tensor in state.items()}, assign=True)
    return net.eval()


def resnet8(**more):
    net = random_net(whole({"net": "resnet", "depth": 8, "stem": "cifar", **more}))
    return net, torch7.to_t7(net.config, net.state_dict())
