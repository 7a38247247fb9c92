"""The options: one table, the recipes by net and dataset, the cross-checks. Port of opts.lua.

Imports nothing heavy, so that -help and every option error answer at once. Differs from the Lua:
names may be given with two dashes, values are checked against what exists, errors are one sentence
and exit status 2, and the options of ResNeXt and of fb.resnet.torch are one set.
"""

import difflib
import math
import os
import sys
import types

import datasets
from models import depths
from runtime.errors import InputError

HEAD = """Usage: main.py [options]

ResNet / ResNeXt training script, a port of Torch-7's
See TRAINING.md for examples

Options:"""


def whole(text):
    """A whole number, as tonumber read it: 32, 1e2."""
    number = float(text)
    if not number.is_integer():
        raise ValueError
    return int(number)


def real(text):
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def boolean(text):
    return {"true": True, "false": False}[text.lower()]


def series(text):
    """Whole numbers separated by commas: epochs, or lengths in pixels."""
    steps = tuple(whole(step) for step in text.split(",")) if text else ()
    if any(step < 1 for step in steps) or list(steps) != sorted(set(steps)):
        raise ValueError
    return steps


WANTED = {
    whole: "a whole number",
    real: "a number",
    boolean: "true or false",
    series: "ascending numbers such as 150,225",
}

PRECISIONS = ("single", "double", "half", "bfloat16", "tf32")

# Name, default, how the value is read, what it may be (words, or the least number), help.
# fmt: off
OPTIONS = (
    # ---------- General options ----------
    ("data",            "",            str,     None, "Path to dataset"),
    ("dataset",         "imagenet",    str,     None, "Options: imagenet | cifar10 | cifar100 | digits"),
    ("manualSeed",      0,             whole,   0,    "Manually set RNG seed"),
    ("nGPU",            1,             whole,   1,    "Number of replicas, on any number of devices"),
    ("nProcs",          1,             whole,   1,    "Processes on the CPU; on CUDA one a device, or so many"),
    ("backend",         "cudnn",       str,     ("cudnn", "cunn"), ""),
    ("cudnn",           "fastest",     str,     ("fastest", "default", "deterministic"), ""),
    ("gen",             "gen",         str,     None, "Path to save generated files"),
    ("precision",       "single",      str,     PRECISIONS, ""),
    ("compile",         False,         boolean, None, "Compile the training step (torch.compile)"),
    # ---------- Data options ----------
    ("nThreads",        2,             whole,   0,    "number of data loading workers"),
    ("skipCorrupt",     False,         boolean, None, "Count and leave out unreadable images"),
    # ---------- Training options ----------
    ("nEpochs",         0,             whole,   0,    "Number of total epochs to run (0: the recipe's)"),
    ("epochNumber",     1,             whole,   1,    "Manual epoch number (useful on restarts)"),
    ("batchSize",       32,            whole,   1,    "mini-batch size (1 = pure stochastic)"),
    ("testOnly",        False,         boolean, None, "Run on validation set only"),
    ("tenCrop",         False,         boolean, None, "Ten-crop testing"),
    ("testScale",       256,           whole,   1,    "Shorter side of the test image (ImageNet)"),
    ("testCrop",        224,           whole,   1,    "Side of the crop of the test image (ImageNet)"),
    ("recomputeBN",     0,             whole,   0,    "Batches to re-estimate batch norm over before a test (0: no)"),
    # ---------- Checkpointing options ----------
    ("save",            "checkpoints", str,     None, "Directory in which to save checkpoints"),
    ("resume",          "none",        str,     None, "Resume from the latest checkpoint in this directory"),
    ("saveEvery",       0.0,           real,    0,    "Also save inside an epoch, every so many minutes (0: no)"),
    ("keep",            0,             whole,   0,    "Keep the files of the last N epochs (0: all)"),
    ("tensorboard",     False,         boolean, None, "Also write the log for TensorBoard"),
    ("progress",        "auto",        str,     ("auto", "lines"), "auto: show the time left on a terminal"),
    # ---------- Optimization options ----------
    ("LR",              0.1,           real,    0,    "initial learning rate"),
    ("LRSteps",         (),            series,  None, "Epochs where the rate drops x0.1 (none: the recipe's)"),
    ("momentum",        0.9,           real,    0,    "momentum"),
    ("weightDecay",     1e-4,          real,    0,    "weight decay"),
    # ---------- Model options ----------
    ("netType",         "resnext",     str,     None, "Options: " + " | ".join(depths.NETS)),
    ("bottleneckType",  "resnext_C",   str,     depths.BOTTLENECKS, ""),
    ("depth",           34,            whole,   1,    "ResNet depth: 18 | 34 | 50 | 101 | ..."),
    ("baseWidth",       64,            whole,   1,    "ResNet base width"),
    ("cardinality",     1,             whole,   1,    "ResNet cardinality"),
    ("shortcutType",    "",            str,     ("", "A", "B", "C", "none"), ""),
    ("retrain",         "none",        str,     None, "Model file to retrain with, or torchvision:NAME"),
    ("optimState",      "none",        str,     None, "Path to an optimState to reload from"),
    # ---------- Model options ----------
    ("shareGradInput",  False,         boolean, None, "Accepted; autograd frees gradInput by itself"),
    ("optnet",          False,         boolean, None, "Recompute activations to reduce memory usage"),
    ("resetClassifier", False,         boolean, None, "Reset the fully connected layer for fine-tuning"),
    ("nClasses",        0,             whole,   0,    "Number of classes (0: as many as are found)"),
)

# Recipes, each as its own repository has it: epochs, rate, where it drops x0.1, shortcut type. By
# net and dataset. A net or dataset without a line of its own takes that of LIKE, or of its stem.
# "every" counts epochs, "at" names them, "after" is a share of nEpochs. The digits are few and
# small: a lower rate, found by trial.
RECIPES = {
    ("resnext", "imagenet"): (100, 0.1,  ("every", 30), "B"),
    ("resnext", "cifar"):    (300, 0.1,  ("after", (0.49, 0.74)), "B"),
    ("resnext", "digits"):   (15,  0.02, ("after", (0.49, 0.74)), "B"),
    ("resnet", "imagenet"):  (90,  0.1,  ("every", 30), "B"),
    ("resnet", "cifar"):     (164, 0.1,  ("at", (81, 122)), "A"),
    ("resnet", "digits"):    (15,  0.02, ("after", (0.49, 0.74)), "A"),
}
LIKE = {"preresnet": "resnet"}  # all others: resnext
# fmt: on


def parse(argv=None, program="main.py", data=True):
    """Read the command line into the options; print help or one sentence of error and exit.

    Without `data` the run needs none: a folder of images is checked where one is named only.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    return command_line(argv, program, HEAD, OPTIONS, lambda opt: check(opt, data))


def command_line(argv, program, head, options, check, words=None):
    """check(the options in `argv`); help, or one sentence of error, ends the program.

    `head` stands above the table of options in the help. Words that are not of an option are
    refused, or appended to the list `words`.
    """
    if any(word in ("-h", "-help", "--help") for word in argv):
        print(help_text(head, options))
        sys.exit(0)
    try:
        return check(read(argv, options, words))
    except InputError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # under torchrun all processes read the same
            print(f"{program}: {error}", file=sys.stderr)
        sys.exit(2)


def read(argv, options=OPTIONS, others=None):
    """The words of the command line as a namespace; `given` holds the names that were given.

    Words that are not of an option are refused, or appended to the list `others`.

    Not by argparse: with single-dash names it takes -dep for -depth even where abbreviations are
    off, and refuses values that start with a dash.
    """
    names = {row[0] for row in options}
    given = {}
    words = iter(argv)
    for word in words:
        if not word.startswith("-"):
            if others is None:
                raise InputError(f"unexpected word {word!r}: an option starts with a dash (-help)")
            others.append(word)
            continue
        name, joined, text = word.lstrip("-").partition("=")
        if name not in names:
            raise InputError(f"unknown option -{name}{_nearest(name, names)}")
        if not joined:
            text = next(words, None)
        if text is None or (text.startswith("-") and text.lstrip("-") in names):
            raise InputError(f"missing argument for option -{name}")
        given[name] = text
    opt = types.SimpleNamespace(given=frozenset(given))
    for name, default, kind, allowed, _ in options:
        setattr(opt, name, _value(name, given[name], kind, allowed) if name in given else default)
    return opt


def _nearest(name, names):
    starts = [known for known in sorted(names) if known.lower().startswith(name.lower())]
    near = starts or difflib.get_close_matches(name, names, 3, 0.5)
    return "; did you mean -" + " or -".join(near) + "?" if near else " (-help lists all)"


def fits(name, value, options=OPTIONS):
    """Whether an option can have a value, which a file holds."""
    default, kind, allowed = next(row[1:4] for row in options if row[0] == name)
    if kind is series:
        return isinstance(value, tuple) and all(type(n) is int and n >= 0 for n in value)
    if type(value) is not type(default):
        return False
    if isinstance(allowed, tuple):
        return value in allowed
    return not isinstance(allowed, int) or allowed <= value < math.inf


def _value(name, text, kind, allowed):
    try:
        value = kind(text)
    except (ValueError, KeyError, OverflowError):
        raise InputError(
            f"invalid value {text!r} for option -{name}: should be {WANTED[kind]}"
        ) from None
    if isinstance(allowed, tuple) and value not in allowed:
        words = ", ".join(word for word in allowed if word)
        raise InputError(f"unknown {name} {text!r}: should be one of {words}")
    if isinstance(allowed, int) and value < allowed:
        raise InputError(f"invalid value {text} for option -{name}: should be at least {allowed}")
    return value


def check(opt, data=True):
    """Fill in the recipe's defaults and refuse what cannot work together."""
    check_dataset(opt)
    if opt.netType not in depths.NETS and not depths.is_own(opt.netType):
        nets = ", ".join(depths.NETS)
        raise InputError(
            f"unknown netType {opt.netType!r}: should be one of {nets}, or a file models/NAME.py"
        )
    epochs, rate, drops, shortcut = recipe(opt.netType, opt.dataset, opt.stem)
    opt.nEpochs = opt.nEpochs or epochs
    opt.LR = opt.LR if "LR" in opt.given else rate
    opt.drops = ("at", opt.LRSteps) if opt.LRSteps else drops
    opt.shortcutType = opt.shortcutType or shortcut
    if opt.momentum == 0:
        raise InputError("-momentum 0: Nesterov momentum requires a momentum; give e.g. 0.9")
    if opt.shareGradInput and opt.optnet:
        raise InputError("cannot use both -shareGradInput and -optnet: leave one out")
    if opt.tenCrop and opt.stem != "imagenet":
        raise InputError("-tenCrop true needs -dataset imagenet: small images are not cropped")
    if opt.testCrop > opt.testScale:
        raise InputError(f"-testCrop {opt.testCrop} is larger than -testScale {opt.testScale}")
    if opt.recomputeBN and opt.batchSize <= opt.nGPU:
        raise InputError("-recomputeBN needs two images a replica: a -batchSize above -nGPU")
    if opt.resume == "none" and opt.retrain == "none" and opt.netType in depths.NETS:
        depths.stages(opt.netType, opt.stem, opt.depth)  # from a file, the file's depth holds
    for name in ("retrain", "optimState"):
        path = getattr(opt, name)
        named = path == "none" or path.startswith("torchvision:")  # formats/ knows these names
        if not named and not os.path.isfile(path):
            raise InputError(f"File not found: {path} (-{name})")
    if data or opt.data:
        check_folder(opt)
    return opt


def recipe(net, dataset, stem):
    """The line of RECIPES for a net and a dataset."""
    for name in (net, LIKE.get(net, "resnext")):
        for data in (dataset, stem):
            if (name, data) in RECIPES:
                return RECIPES[name, data]
    raise InputError(f"opts.RECIPES has no line for {net} on {dataset}")


def check_dataset(opt):
    """Refuse a dataset that does not exist; sets the stem that it asks for."""
    opt.stem = datasets.module(opt.dataset).stem


def check_folder(opt):
    """Refuse a folder that is not laid out as ImageNet's; a test alone needs no train/."""
    if opt.dataset != "imagenet":
        return
    opt.data = data = opt.data or "imagenet"
    held = "must hold train/<class>/<image> and val/<class>/<image>"
    if not os.path.isdir(data):
        raise InputError(f"missing ImageNet data directory {data!r}: give -data DIR; it {held}")
    for split in ("val",) if opt.testOnly and not opt.recomputeBN else ("train", "val"):
        if not os.path.isdir(os.path.join(data, split)):
            raise InputError(
                f"ImageNet missing `{split}` directory: {os.path.join(data, split)}; -data {held}"
            )


def help_text(head=HEAD, options=OPTIONS):
    """The table of options in the original's layout."""
    width = max(len(row[0]) for row in options)
    rows = [head]
    for name, default, _, allowed, text in options:
        text = text or "Options: " + " | ".join(filter(None, allowed))
        rows.append(f"  -{name:<{width}} {text} [{_shown(default)}]")
    return "\n".join(rows)


def _shown(value):
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else f"{value}"
