"""The complexity of a net: parameters, multiply-adds and activations by stage; the paper's tables.

`python complexity.py OPTIONS` takes main.py's options and measures the net that they build, without
data and without memory for its weights. Without options it prints the sizes in the paper's Tables
1, 2, 3, 4 and 7 and figure 7, ours beside the paper's (Table 5 has the nets of Table 4), and our
sizes of Table 8's detectors.

- Parameters: weights and biases of all layers, batch norm included, without running statistics.
- Multiply-adds: those of convolutions and classifier for one image, not of batch norm, ReLU,
  pooling and sums; a bias counts as one. The paper's "FLOPs" are these.
- Activations: all outputs of convolutions and classifier, as in pycls.
"""

import contextlib
import functools
import io
import math
import os
import sys
from typing import NamedTuple

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # for python -P and -I

import datasets
import models
import opts
from models import depths
from runtime import command
from runtime.errors import InputError

HEAD = """Usage: complexity.py [options]

Parameters, multiply-adds and activations of the net that main.py would train with these options, or
with -retrain FILE of the net in a file. Images for ImageNet's nets have -testCrop pixels a side;
those for a FILE are as large as it says, unless -dataset, -data or -testCrop is given. Without
-nClasses and -data these nets have 1000 classes. For a detector, a file of detect.py, the parts are
listed.

Without options: the paper's tables of sizes, ours beside them.

Options:"""


MOST = 2000  # blocks of a net, or paths in form A or B; each has up to three layers


def _row(depth, c, d, parameters="", flops=""):
    """The table row of a net `c`x`d`d: name, options, and the paper's figures if it gives any.

    `parameters` are millions, `flops` billions. Depth 29 is the paper's net for CIFAR.
    """
    options = f"-depth {depth} -cardinality {c} -baseWidth {d}"
    cifar = "-dataset cifar10 " if depth == 29 else ""
    return f"ResNe{'X' if c > 1 else ''}t-{depth} {c}x{d}d", cifar + options, parameters, flops


WIDTHS = ((1, 64), (2, 40), (4, 24), (8, 14), (32, 4))  # Table 2: cardinality C, width d
# the table's last two rows; the paper's footnote 5 says why they differ
TABLE_1 = (_row(50, 1, 64, "25.5", "4.1"), _row(50, 32, 4, "25.0", "4.2"))
# Figure 5 and Table 3: "~4.1 billion FLOPs, ~25 million parameters" and "~7.8 billion FLOPs, ~44
# million parameters".
TABLE_3 = (
    *(_row(50, c, d, "~25", "~4.1") for c, d in WIDTHS),
    *(_row(101, c, d, "~44", "~7.8") for c, d in WIDTHS),
)
# Section 5.1: variants "that have ~15 billion FLOPs"; the original README has 64x4d at ~15.6. Its
# ResNet-200 is the pre-activated one of fb.resnet.torch.
TABLE_4 = (
    _row(101, 1, 64, "~44", "~7.8"),
    _row(101, 32, 4, "~44", "~7.8"),
    ("ResNet-200 1x64d", "-netType preresnet -depth 200", "", "~15"),
    _row(101, 1, 100, "", "~15"),
    _row(101, 2, 64, "", "~15"),
    _row(101, 64, 4, "", "~15.6"),
)
TABLE_7 = (_row(29, 8, 64, "34.4"), _row(29, 16, 64, "68.1"))
# Section 5.3: "(i) increase cardinality and fix all widths, or (ii) increase width of the
# bottleneck and fix cardinality = 1". Only the picture has the points; our widths for (ii) give
# about the sizes of (i).
FIGURE_7 = (
    *(_row(29, c, 64) for c in (1, 2, 4)),
    *TABLE_7,
    *(_row(29, 1, d) for d in (98, 149, 219, 320)),
)
TABLE_8 = (TABLE_1[0], TABLE_1[1], _row(101, 1, 64), _row(101, 32, 4))
COCO_CLASSES = 80
TABLES = (
    ("Table 1: ResNet-50 and ResNeXt-50", TABLE_1),
    ("Table 3: cardinality against width, complexity preserved", TABLE_3),
    ("Table 4: deeper, wider, more cardinality", TABLE_4),
    ("Table 7: the nets for CIFAR (with 10 classes)", TABLE_7),
    ("Figure 7: more cardinality, and more width at cardinality 1", FIGURE_7),
)


class Part(NamedTuple):
    """A layer, a stage of a net or a part of a detector; its numbers are for one image."""

    name: str
    output: tuple  # the shape: (C, H, W), or (classes,)
    parameters: int  # of a layer without its bias
    multiply_adds: int
    activations: int


def main(argv):
    """Print the complexity of the net that the options ask for, or of the paper's nets."""
    if not argv:
        print_paper()
        return
    opt = opts.parse(argv, "complexity.py", HEAD, data=False)
    from detection import files  # after the options, whose errors need not wait for torch

    saved = files.is_detector(opt.retrain) if opt.retrain != "none" else None
    if saved is not None:
        rows, size = detector_parts(files.load_detector(opt.retrain, saved).to("meta"))
        print_net(f"One image of {size} pixels in a test (a multiply-add is 2 FLOPs)", rows, 18)
        return
    net, opt = build(opt)
    size = side(opt, net)
    title = f"One image of {size} x {size} pixels (a multiply-add is 2 FLOPs)"
    print_net(title, stages(net, layers(net, size)))


def build(start):
    """The net of these options, on the meta device, and its options."""
    import torch

    import checkpoints

    with contextlib.redirect_stdout(io.StringIO()):  # the lines that a run prints
        checkpoint = checkpoints.latest(start.resume)
        net = models.from_file(checkpoint, start.retrain)
        opt = opts.settle(start.given, checkpoint, net and net.config)
        opts.check(opt, data=False)
        if net is None:
            _check_size(opt)
            with torch.device("meta"):
                return models.build(opt, classes(opt)), opt
        if opt.resetClassifier and not checkpoint:
            models.reset_classifier(net, classes(opt))
        return net.to("meta"), opt


def _check_size(opt):
    """Refuse a net of so many layers that its measurement would take minutes."""
    if opt.netType not in depths.NETS:  # a net of one's own
        return
    count, what = sum(depths.stages(opt.netType, opt.stem, opt.depth)[1]), "blocks"
    way_out = f"give a -depth with at most {MOST:,}"
    is_split = "resnext" in opt.netType and opt.bottleneckType in ("resnext_A", "resnext_B")
    if is_split and count <= MOST:
        count, what = count * opt.cardinality, "paths"
        way_out = "resnext_C is the same net with the same numbers"
    if count > MOST:
        raise InputError(f"{count:,} {what} take minutes to measure; {way_out}")


def classes(opt):
    """The number of classes: -nClasses, else the data's, or 1000 for ImageNet without data."""
    if opt.nClasses or (opt.dataset == "imagenet" and opt.source("data") == "recipe"):
        return opt.nClasses or 1000
    return len(datasets.module(opt.dataset).classes(opt))


def side(opt, net=None):
    """The width and height of an image in pixels.

    net: the one to measure. Its file gives the size unless an option does.
    """
    from_file = hasattr(net, "input_spec")
    named = {opt.source(name) for name in ("dataset", "data", "trainCrop", "testCrop")}
    if from_file and not named & {"given", "checkpoint"}:
        if net.input_spec and "crop" in net.input_spec:
            return net.input_spec["crop"]
        return 32 if net.config.get("stem") == "cifar" else opt.testCrop
    if opt.stem == "imagenet":
        return opt.testCrop
    dataset = datasets.module(opt.dataset)
    if not hasattr(dataset, "side"):
        raise InputError(
            f"datasets/{opt.dataset}.py gives no image size: add a line such as side = 32"
        )
    return dataset.side


def layers(net, size):
    """The layers of a net on the meta device, for a square image of `size` pixels."""
    import torch

    return run(net, torch.empty(1, 3, size, size, dtype=net.fc.weight.dtype, device="meta"))[1]


def run(module, inputs):
    """(output, convolutions and linear layers in the order they run) of a module, on meta."""
    import torch
    from torch import nn

    found, hooks = [], []

    def record(name, layer, _, output):
        outputs, weights = output.numel(), layer.weight.numel()
        each = layer.weight[0].numel() + (layer.bias is not None)
        found.append(Part(name, tuple(output.shape[1:]), weights, outputs * each, outputs))

    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            hooks.append(layer.register_forward_hook(functools.partial(record, name)))
        elif isinstance(layer, nn.BatchNorm2d):
            layer.forward = lambda x: x  # costs nothing to count, and is slow on meta
    with torch.no_grad():
        output = module.eval()(inputs)
    for hook in hooks:
        hook.remove()
    return output, found


def stages(net, layers):
    """The stages of a net, given its layers."""
    found = {}
    for layer in layers:
        found.setdefault(_stage(layer.name), []).append(layer)
    parameters = dict.fromkeys(found, 0)
    for name, parameter in net.named_parameters():
        parameters[_stage(name)] += parameter.numel()
    return [
        Part(name, own[-1].output, parameters[name], *total(own)[1:]) for name, own in found.items()
    ]


def _stage(name):
    """The stage of a parameter or layer; bn1 is in the stem (conv1), bn_last in the head (fc)."""
    first = name.split(".")[0]
    return {"bn1": "conv1", "bn_last": "fc"}.get(first, first)


def total(parts):
    """(parameters, multiply-adds, activations) of several parts together."""
    return tuple(sum(column) for column in list(zip(*parts))[2:])


def width(cardinality):
    """The bottleneck width d at which a block of cardinality C is as complex as that of ResNet.

    Section 3.4, equation 4: C (256 d + 3 3 d d + d 256) parameters, as many as with C = 1 and
    d = 64. Returns the positive root, rounded.
    """
    each = (256 * 64 + 9 * 64 * 64 + 64 * 256) / cardinality
    return round((math.sqrt(512**2 + 4 * 9 * each) - 512) / (2 * 9))


def print_net(title, rows, wide=8):
    """Print a net by stage: output shapes and exact counts. wide: columns of the names."""
    print(f"{title}\n\n{'':{wide}}          output    parameters    multiply-adds   activations")
    for row in rows:
        shape = " x ".join(map(str, row.output))
        print(f"{row.name:{wide}}{shape:>16}{row[2]:14,}{row[3]:17,}{row[4]:14,}")
    parameters, multiply_adds, activations = total(rows)
    print(f"{'total':{wide}}{'':16}{parameters:14,}{multiply_adds:17,}{activations:14,}\n")


def detector_parts(model):
    """(parts of a detector, size of the image that they are for, as text)."""
    import torch

    def add(name, module, inputs):
        output, inside = run(module, inputs)
        while not isinstance(output, torch.Tensor):
            output = output[0]  # of several outputs, the first
        parameters = sum(p.numel() for p in module.parameters())
        parts.append(Part(name, tuple(output.shape[1:]), parameters, *total(inside)[1:]))
        return output

    # detection/net.py pads the sides to multiples of 32
    height, width = (-(-model.config[side] // 32) * 32 for side in ("scale", "largest"))
    parts, image = [], torch.empty(1, 3, height, width, device="meta")
    if not model.config["shared"]:
        add("RPN's trunk", model.rpn_backbone, image)
    maps = add("trunk", model.backbone, image)
    add("RPN", model.rpn.head, [maps])
    count, side = model.config["proposals"][3], model.config["pool"]
    regions = torch.empty(count, maps.shape[1], side, side, device="meta")
    features = add(f"last stage x {count}", model.roi_heads.box_head, regions)
    add(f"predictor x {count}", model.roi_heads.box_predictor, features)
    return parts, f"{height} x {width}"


def print_paper():
    """Print the paper's tables of sizes, ours beside the paper's."""
    print("Parameters in millions, multiply-adds (the paper's FLOPs) in billions, activations in")
    print("millions, for one image: 224 x 224 pixels for ImageNet, 32 x 32 for CIFAR.\n")
    for title, rows in TABLES:
        measured = [_measured(options)[1] for _, options, *_ in rows]
        if rows is TABLE_1:  # it lists the stages; the paper's conv2 to conv5 are layer1 to layer4
            for (name, *_), net in zip(rows, measured):
                print_net(f"{name}, by stage", net)
        print(f"{title}\n\n{'':24}      parameters    multiply-adds  activations")
        print(f"{'':24}   paper    ours    paper    ours         ours  options")
        for (name, options, *paper), net in zip(rows, measured):
            m, g, a = total(net)
            size = f"{paper[0]:>8}{m / 1e6:8.2f}{paper[1]:>9}{g / 1e9:8.2f}{a / 1e6:13.1f}"
            print(f"{name:24}{size}  {options}")
        print()
        if rows is TABLE_1:
            print_table_2()
    print_table_8()


def print_table_2():
    """Print Table 2: widths by equation 4, sizes as measured in the second block of layer1."""
    print("Table 2: cardinality C and width d, for a block with 256 inputs and outputs (conv2)\n")
    print("                 d           C d      parameters    multiply-adds")
    print("   C   paper  ours   paper  ours   paper    ours    paper    ours")
    for c, d in WIDTHS:
        every, _ = _measured(_row(50, c, width(c))[1])
        inside = [layer for layer in every if layer.name.startswith("layer1.1.")]
        weights, flops, _ = total(inside)
        widths = f"{c:4}{d:8}{width(c):6}{c * d:8}{inside[0].output[0]:6}"
        print(f"{widths}{'~0.07':>8}{weights / 1e6:8.3f}{'~0.22':>9}{flops / 1e9:8.3f}")
    print()


def print_table_8():
    """Print the detectors of Table 8 in detect.py's recipe; the paper gives no sizes for them."""
    import torch

    from detect import RECIPES
    from detection import files

    config = {name: RECIPES["coco", False][name] for name in ("anchors", "scale", "largest")}
    config |= {name: RECIPES["coco", False][name] for name in ("regions", "proposals", "pool")}
    for place, (name, options, *_) in enumerate(TABLE_8):
        net, _ = build(opts.parse(options.split(), "complexity.py", HEAD, data=False))
        net.input_spec = {"largest": 1, "mean": (0, 0, 0), "std": (1, 1, 1)}
        with torch.device("meta"):
            names = [str(i) for i in range(COCO_CLASSES)]
            model = files.from_classifier(net, {**config, "shared": False}, names)
        rows, size = detector_parts(model)
        if not place:
            print(f"Table 8: Faster R-CNN, one image of {size} pixels in a test; RPN's and Fast")
            print("R-CNN's trunks; the last stage and the predictor for 300 regions\n")
            print(f"{'':24} parameters  multiply-adds:  trunks     RPN  regions   total")
        own, fast, rpn, stage, last = (row.multiply_adds / 1e9 for row in rows)
        m, g, _ = total(rows)
        sums = f"{own + fast:8.1f}{rpn:8.1f}{stage + last:9.1f}{g / 1e9:8.1f}"
        print(f"{name:24}{m / 1e6:11.2f}{'':16}{sums}")
    print()


@functools.cache  # because some nets are in several tables
def _measured(options):
    """(layers, stages) of the net that a string of options asks for."""
    opt = opts.parse(options.split(), "complexity.py", HEAD, data=False)
    net, opt = build(opt)
    measured = layers(net, side(opt))
    return measured, stages(net, measured)


if __name__ == "__main__":
    command.run(lambda: main(sys.argv[1:]))
