"""How large a net is: parameters, multiply-adds and activations, by stage; the paper's tables.

`python complexity.py OPTIONS` takes main.py's options and measures the net that they
build; no data and no memory are needed for it. Without options it prints the sizes in the paper's
Tables 1, 2, 3, 4 and 7 and figure 7, ours beside the paper's (Table 5's nets are Table 4's).

- Parameters: weights and biases of all layers, batch norm's too, without running statistics.
- Multiply-adds of one image: half of what torch.utils.flop_counter.FlopCounterMode counts, to which
  a multiplication and an addition are two FLOPs (the paper's "FLOPs" are multiply-adds), and one
  for each bias added, which it leaves out. Convolutions and the classifier count; batch norm,
  ReLU, pooling and sums do not.
- Activations: all outputs of convolutions and of the classifier (as in pycls).
"""

import contextlib
import functools
import io
import math
import sys
from typing import NamedTuple

import opts
from runtime.errors import InputError

USAGE = """Usage: complexity.py [options]

Parameters, multiply-adds and activations of the net that main.py would train with these options
(main.py -help lists them); of a net in a file with -retrain FILE, of a detector's parts if
detect.py trained that. ImageNet's nets see -testCrop
pixels and have 1000 classes where neither -nClasses nor -data tells another number.

Without options: the paper's tables of sizes, and ours beside them."""


def _row(depth, c, d, parameters="", flops=""):
    """A net of the paper's notation: name, options, the paper's millions and billions if it says.

    Depth 29 is its net for CIFAR; the 1x64d of any depth is ResNet.
    """
    options = f"-depth {depth} -cardinality {c} -baseWidth {d}"
    cifar = "-dataset cifar10 " if depth == 29 else ""
    return f"ResNe{'X' if c > 1 else ''}t-{depth} {c}x{d}d", cifar + options, parameters, flops


WIDTHS = ((1, 64), (2, 40), (4, 24), (8, 14), (32, 4))  # Table 2: cardinality C, width d
# Its last two rows; footnote 5 tells why they differ.
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
# bottleneck and fix cardinality = 1". Which points the figure has only its picture tells; those of
# (ii) here have about the sizes of those of (i).
FIGURE_7 = (
    *(_row(29, c, 64) for c in (1, 2, 4)),
    *TABLE_7,
    *(_row(29, 1, d) for d in (98, 149, 219, 320)),
)
TABLES = (
    ("Table 1: ResNet-50 and ResNeXt-50", TABLE_1),
    ("Table 3: cardinality against width, complexity preserved", TABLE_3),
    ("Table 4: deeper, wider, more cardinality", TABLE_4),
    ("Table 7: the nets for CIFAR (with 10 classes)", TABLE_7),
    ("Figure 7: more cardinality, and more width at cardinality 1", FIGURE_7),
)


class Layer(NamedTuple):
    """A convolution or the classifier, as one image passes through it."""

    name: str
    output: tuple  # (C, H, W), or (classes,)
    weights: int
    multiply_adds: int
    activations: int


class Stage(NamedTuple):
    """The layers up to the first block, those of a stage of blocks, or those behind the last."""

    name: str
    output: tuple
    parameters: int
    multiply_adds: int
    activations: int


def main(argv=None):
    """Print the sizes of the net that the options ask for, or of those in the paper."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if any(word in ("-h", "-help", "--help") for word in argv):
        print(USAGE)
        return
    if not argv:
        print_paper()
        return
    opt = opts.parse(argv, "complexity.py", data=False)
    try:
        if print_detector(opt.retrain):
            return
        net = build(opt)
        size = side(opt)
    except InputError as error:
        print(f"complexity.py: {error}", file=sys.stderr)
        sys.exit(1)
    title = f"One image of {size} x {size} pixels (a multiply-add is 2 FLOPs)"
    print_net(title, stages(net, layers(net, size)))


def build(opt):
    """The net of these options, new nets on the meta device: shapes without numbers."""
    import torch

    import checkpoints
    import models

    with contextlib.redirect_stdout(io.StringIO()):  # what a run would announce
        checkpoint = checkpoints.latest(opt)
        file = checkpoint["modelFile"] if checkpoint else opt.retrain
        if file == "none":
            with torch.device("meta"):
                return models.build(opt, classes(opt))
        net = models.load_file(file)
        if opt.resetClassifier and not checkpoint:
            models.reset_classifier(net, classes(opt))
        return net.to("meta")


def classes(opt):
    """How many classes there are: -nClasses, or those of the data; 1000 where none are given."""
    import datasets

    if opt.nClasses or (opt.dataset == "imagenet" and not opt.data):
        return opt.nClasses or 1000
    return len(datasets.module(opt.dataset).classes(opt))


def side(opt):
    """How many pixels wide and high an image is."""
    import datasets

    if opt.stem == "imagenet":
        return opt.testCrop
    dataset = datasets.module(opt.dataset)
    if not hasattr(dataset, "side"):
        raise InputError(f"datasets/{opt.dataset}.py does not say how large images are: side = 32")
    return dataset.side


def layers(net, size):
    """Every convolution and the classifier of a net on the meta device, in the order they run."""
    import torch
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    seen = []
    counted = {n: m for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    hooks = [
        module.register_forward_hook(lambda m, _, y, name=name: seen.append((name, m, y[0])))
        for name, module in counted.items()
    ]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.empty(1, 3, size, size, dtype=net.fc.weight.dtype, device="meta"))
    for hook in hooks:
        hook.remove()
    found, counts = [], counter.get_flop_counts()
    for name, module, output in seen:
        outputs = output.numel()
        flops = sum(counts[f"{type(net).__name__}.{name}"].values())
        multiply_adds = flops // 2 + (outputs if module.bias is not None else 0)
        shape = tuple(output.shape)
        found.append(Layer(name, shape, module.weight.numel(), multiply_adds, outputs))
    return found


def stages(net, inside):
    """The stages of a net, given its layers."""
    found = {}
    for layer in inside:
        found.setdefault(_stage(layer.name), []).append(layer)
    parameters = dict.fromkeys(found, 0)
    for name, parameter in net.named_parameters():
        parameters[_stage(name)] += parameter.numel()
    return [
        Stage(
            name,
            here[-1].output,
            parameters[name],
            sum(layer.multiply_adds for layer in here),
            sum(layer.activations for layer in here),
        )
        for name, here in found.items()
    ]


def _stage(name):
    """The stage of a parameter or layer: batch norm outside the blocks goes with its neighbour."""
    first = name.split(".")[0]
    return {"bn1": "conv1", "bn_last": "fc"}.get(first, first)


def total(rows):
    """(parameters, multiply-adds, activations) of all stages."""
    return tuple(sum(column) for column in list(zip(*rows))[2:])


def width(cardinality):
    """The bottleneck width d that keeps the complexity of a block at this cardinality C.

    Section 3.4, equation 4: C (256 d + 3 3 d d + d 256) parameters, as many as in the block of
    ResNet, C = 1 and d = 64. The positive root, to the nearest whole number.
    """
    each = (256 * 64 + 9 * 64 * 64 + 64 * 256) / cardinality
    return round((math.sqrt(512**2 + 4 * 9 * each) - 512) / (2 * 9))


def print_net(title, rows, wide=8):
    """A net by stage: its outputs, exact counts; the names take `wide` columns."""
    heads = f"{'output':>16}{'parameters':>14}{'multiply-adds':>17}{'activations':>14}"
    print(f"{title}\n\n{'':{wide}}{heads}")
    for row in rows:
        shape = " x ".join(map(str, row.output))
        print(f"{row.name:{wide}}{shape:>16}{row[2]:14,}{row[3]:17,}{row[4]:14,}")
    parameters, multiply_adds, activations = total(rows)
    print(f"{'total':{wide}}{'':16}{parameters:14,}{multiply_adds:17,}{activations:14,}\n")


def print_detector(source):
    """Print the parts of a detector, if `source` holds one; returns whether it does."""
    from detection import files, sizes

    saved = files.is_detector(source) if source != "none" else None
    if saved is None:
        return False
    model = files.load(source, saved).to("meta")
    height, width = (-(-model.config[side] // 32) * 32 for side in ("scale", "largest"))
    title = f"One image of {height} x {width} pixels in a test (a multiply-add is 2 FLOPs)"
    print_net(title, [Stage(*part) for part in sizes.parts(model, height, width)], 18)
    return True


def print_paper():
    """The paper's tables of sizes."""
    print("Parameters in millions, multiply-adds (the paper's FLOPs) in billions, activations in")
    print("millions, for one image: 224 x 224 pixels for ImageNet, 32 x 32 for CIFAR.\n")
    for title, rows in TABLES:
        measured = [_measured(options)[1] for _, options, *_ in rows]
        if (
            rows is TABLE_1
        ):  # the one that shows the stages; its conv2 to conv5 are layer1 to layer4
            for (name, *_), net in zip(rows, measured):
                print_net(f"{name}, by stage", net)
        print(f"{title}\n\n{'':24}{'parameters':>16}{'multiply-adds':>17}{'activations':>13}")
        print(f"{'':24}{'paper':>8}{'here':>8}{'paper':>9}{'here':>8}{'here':>13}  options")
        for (name, options, *paper), net in zip(rows, measured):
            m, g, a = total(net)
            size = f"{paper[0]:>8}{m / 1e6:8.2f}{paper[1]:>9}{g / 1e9:8.2f}{a / 1e6:13.1f}"
            print(f"{name:24}{size}  {options}")
        print()
        if rows is TABLE_1:
            print_table_2()


def print_table_2():
    """Table 2: widths by equation 4, sizes measured in the second block of built nets' layer1."""
    print("Table 2: cardinality C and width d, for a block with 256 inputs and outputs (conv2)\n")
    print(f"{'':4}{'d':>14}{'C d':>14}{'parameters':>16}{'multiply-adds':>17}")
    print(f"{'C':>4}{'paper':>8}{'here':>6}" + f"{'paper':>8}{'here':>6}", end="")
    print(f"{'paper':>8}{'here':>8}{'paper':>9}{'here':>8}")
    for c, d in WIDTHS:
        every, _ = _measured(_row(50, c, width(c))[1])
        inside = [layer for layer in every if layer.name.startswith("layer1.1.")]
        weights = sum(layer.weights for layer in inside)
        flops = sum(layer.multiply_adds for layer in inside)
        widths = f"{c:4}{d:8}{width(c):6}{c * d:8}{inside[0].output[0]:6}"
        print(f"{widths}{'~0.07':>8}{weights / 1e6:8.3f}{'~0.22':>9}{flops / 1e9:8.3f}")
    print()


@functools.cache  # several tables have the same nets
def _measured(options):
    """(layers, stages) of the net of a line of options."""
    opt = opts.parse(options.split(), "complexity.py", data=False)
    net = build(opt)
    inside = layers(net, side(opt))
    return inside, stages(net, inside)


if __name__ == "__main__":
    main()
