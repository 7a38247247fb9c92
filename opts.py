"""The options: one table, the recipes by net and dataset, the cross-checks. Port of opts.lua.

Imports nothing heavy, so that -help and option errors answer at once. Differs from the Lua: names
may be given with two dashes, values are checked against what exists, and the options of ResNeXt and
of fb.resnet.torch are one set. Errors are one sentence and exit status 2; 1 where a checkpoint or a
model had to be read first.
"""

import difflib
import math
import os
import shlex
import sys
import types

import datasets
from models import depths
from runtime import regular_files
from runtime.errors import InputError
from runtime.option_kinds import EXACT, LONGEST, WANTED, boolean, real, series, value_text, whole
from runtime.terminal import complain, note

HEAD = """Usage: main.py [options]

ResNet / ResNeXt training script, a port of Torch-7's
See TRAINING.md for examples

Options:"""


WIDEST = 1 << 14  # channels of all paths in the first stage: nobody's memory holds such a net
MOST_EPOCHS = 10_000  # each checkpoint holds the log of all; storage/pickles.py reads some 17,000
PRECISIONS = ("single", "double", "half", "bfloat16", "tf32")

# Name, default, how the value is read, what it may be (words, the least number, or a range), help.
# fmt: off
OPTIONS = (
    # ---------- General options ----------
    ("data",            "",            str,     None, "Path to dataset"),
    ("dataset",         "imagenet",    str,     None, "Options: imagenet | cifar10 | cifar100 | digits"),
    ("manualSeed",      0,             whole,   None, "Manually set RNG seed"),
    ("nGPU",            1,             whole,   range(1, 2**16 + 1),    "Number of replicas, on any number of devices"),
    ("nProcs",          1,             whole,   range(1, 2**12 + 1),    "Processes on the CPU; on CUDA one a device, or so many"),
    ("backend",         "cudnn",       str,     ("cudnn", "cunn"), ""),
    ("cudnn",           "fastest",     str,     ("fastest", "default", "deterministic"), ""),
    ("gen",             "gen",         str,     None, "Path to save generated files"),
    ("precision",       "single",      str,     PRECISIONS, ""),
    ("compile",         False,         boolean, None, "Compile the training step (torch.compile)"),
    # ---------- Data options ----------
    ("nThreads",        2,             whole,   range(0, 2**12 + 1),    "number of data loading workers"),
    ("skipCorrupt",     False,         boolean, None, "Count and leave out unreadable images"),
    # ---------- Training options ----------
    ("nEpochs",         0,             whole,   0,    "Number of total epochs to run (0: the recipe's)"),
    ("epochNumber",     1,             whole,   1,    "Manual epoch number (useful on restarts)"),
    ("batchSize",       32,            whole,   1,    "mini-batch size (1 = pure stochastic)"),
    ("testOnly",        False,         boolean, None, "Run on validation set only"),
    ("tenCrop",         False,         boolean, None, "Ten-crop testing"),
    ("testScale",       256,           whole,   range(1, LONGEST + 1),    "Shorter side of the test image (ImageNet)"),
    ("testCrop",        224,           whole,   range(1, LONGEST + 1),    "Side of the crop of the test image (ImageNet)"),
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
    ("classifierLR",    0.0,           real,    0,    "initial rate of the fully connected layer (0: -LR's)"),
    ("momentum",        0.9,           real,    0,    "momentum"),
    ("weightDecay",     1e-4,          real,    0,    "weight decay"),
    # ---------- Model options ----------
    ("netType",         "",            str,     None, "Options: " + " | ".join(depths.NETS)),
    ("bottleneckType",  "resnext_C",   str,     depths.BOTTLENECKS, ""),
    ("depth",           34,            whole,   range(1, 10_001),    "ResNet depth: 18 | 34 | 50 | 101 | ..."),
    ("baseWidth",       64,            whole,   range(1, WIDEST + 1),     "ResNet base width"),
    ("cardinality",     1,             whole,   range(1, 2**10 + 1),    "ResNet cardinality"),
    ("shortcutType",    "",            str,     ("", "A", "B", "C", "none"), ""),
    ("retrain",         "none",        str,     None, "Model file to retrain with, or torchvision:NAME"),
    ("optimState",      "none",        str,     None, "Path to an optimState to reload from"),
    # ---------- Model options ----------
    ("shareGradInput",  False,         boolean, None, "Accepted; autograd frees gradInput by itself"),
    ("optnet",          False,         boolean, None, "Recompute activations to reduce memory usage"),
    ("accumulate",      False,         boolean, None, "Run replica slices one after another: less memory"),
    ("resetClassifier", False,         boolean, None, "Reset the fully connected layer for fine-tuning"),
    ("freeze",          0,             whole,   0,    "Stages that fine-tuning holds still, with the stem (0: none)"),
    ("nClasses",        0,             whole,   range(0, 1_000_001),    "Number of classes (0: as many as are found)"),
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
# Where -netType is not given, one of these makes it resnext, else it is resnet: ResNeXt's published
# commands all give them, fb.resnet.torch's have none of them.
OF_RESNEXT = {"cardinality", "baseWidth", "bottleneckType"}
# Options of one start. All others are the run's: a resumed one has the checkpoint's, unless given.
OF_A_START = {
    *("gen", "nThreads", "nProcs", "save", "resume", "progress", "testOnly", "epochNumber"),
    *("retrain", "optimState", "resetClassifier", "backend", "shareGradInput"),
}
# Of these, not for the command that resumes.
NOT_AGAIN = {"save", "resume", "testOnly", "epochNumber", "retrain", "optimState", "resetClassifier"}
# What a net's configuration says, under the names of the options
OF_THE_NET = {
    **{"depth": "depth", "cardinality": "cardinality", "base_width": "baseWidth"},
    **{"bottleneck": "bottleneckType", "shortcut": "shortcutType"},
}
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
        print(help_text(head, options), flush=True)
        sys.exit(0)
    try:
        opt = read(argv, options, words)
        if "save" in opt.given and opt.save == "none":  # which -resume could not name
            raise InputError("-save none: the word means no folder; -save ./none names one")
        return check(opt)
    except InputError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # under torchrun all processes read the same
            complain(f"{program}: {error}")
        sys.exit(2)


def of_the_run(options=OPTIONS):
    """The names of the options that a resumed run has from its checkpoint."""
    return [row[0] for row in options if row[0] not in OF_A_START]


def resume_command(argv, save, program="main.py", options=OPTIONS):
    """The command that resumes a run in the folder `save`, which `argv` began.

    It names the program as it was started, unless it lies in the current folder.
    """
    given = read(argv, options, [])
    kept = [row[0] for row in options if row[0] in given.given & OF_A_START - NOT_AGAIN]
    words = [word for name in kept for word in (f"-{name}", value_text(getattr(given, name)))]
    started = sys.argv[0]
    is_here = os.path.abspath(started) == os.path.abspath(program)
    if os.path.basename(started) == program and not is_here:
        program = started
    return shlex.join(["python", program, "-resume", save, *words])


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
    starts = [known for known in sorted(names) if name and known.lower().startswith(name.lower())]
    near = starts or difflib.get_close_matches(name, names, 3, 0.5)
    return "; did you mean -" + " or -".join(near) + "?" if near else " (-help lists all)"


def fits(name, value, options=OPTIONS):
    """Whether an option can have a value, which a file holds."""
    default, kind, allowed = next(row[1:4] for row in options if row[0] == name)
    if kind is series:
        return isinstance(value, tuple) and all(type(n) is int and n >= 0 for n in value)
    if type(value) is not type(default):
        return False
    if name == "momentum" and value == 0:  # as `complete` says
        return False
    if isinstance(allowed, (tuple, range)):
        return value in allowed
    if kind is whole and abs(value) > EXACT:
        return False
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
    if isinstance(allowed, range) and value not in allowed:
        raise InputError(
            f"invalid value {text} for option -{name}: should be {allowed[0]} to {allowed[-1]}"
        )
    if isinstance(allowed, int) and value < allowed:
        raise InputError(f"invalid value {text} for option -{name}: should be at least {allowed}")
    return value


def check(opt, data=True):
    """`complete` the options; of a run that resumes later, when its checkpoint has been read."""
    opt.adopted = frozenset()  # names of options that are the checkpoint's
    if opt.resume == "none":
        return complete(opt, data)
    if "save" not in opt.given:
        opt.save = opt.resume
    return opt


def complete(opt, data=True, resumed=False):
    """Fill in the recipe's defaults and refuse what cannot work together; once more does no harm.

    resumed: the net is a checkpoint's, so its depth is, too.
    """
    check_dataset(opt)
    if not opt.netType:
        opt.netType = "resnext" if OF_RESNEXT & opt.given else "resnet"
    if opt.netType not in depths.NETS and not depths.is_own(opt.netType):
        nets = ", ".join(depths.NETS)
        raise InputError(
            f"unknown netType {opt.netType!r}: should be one of {nets}, or a file models/NAME.py"
        )
    follow_recipe(opt)
    if opt.momentum == 0:
        raise InputError("-momentum 0: Nesterov momentum requires a momentum; give e.g. 0.9")
    if opt.cardinality * opt.baseWidth > WIDEST:
        paths = f"-cardinality {opt.cardinality} paths of -baseWidth {opt.baseWidth} channels"
        raise InputError(f"{paths}: together they should have at most {WIDEST}")
    if opt.shareGradInput and opt.optnet:
        raise InputError("cannot use both -shareGradInput and -optnet: leave one out")
    if opt.freeze and opt.retrain == "none" and not resumed:
        raise InputError("-freeze needs trained weights: give -retrain FILE")
    if opt.tenCrop and opt.stem != "imagenet":
        raise InputError("-tenCrop true needs -dataset imagenet: small images are not cropped")
    if opt.testCrop > opt.testScale:
        raise InputError(f"-testCrop {opt.testCrop} is larger than -testScale {opt.testScale}")
    if opt.recomputeBN and opt.batchSize <= opt.nGPU:
        raise InputError("-recomputeBN needs two images a replica: a -batchSize above -nGPU")
    if "nEpochs" in opt.given and opt.nEpochs > MOST_EPOCHS:
        most = f"should be at most {MOST_EPOCHS:,}, whose log a checkpoint can hold"
        raise InputError(f"-nEpochs {opt.nEpochs}: {most}")
    if opt.retrain == "none" and not resumed:
        check_first_epoch(opt)
        if opt.netType in depths.NETS:
            depths.stages(opt.netType, opt.stem, opt.depth)
    if opt.retrain != "none":
        opt.retrain = regular_files.model_file(opt.retrain)
    for name in ("retrain", "optimState"):
        path = getattr(opt, name)
        named = path == "none" or path.startswith("torchvision:")  # formats/ knows these names
        if not named:
            regular_files.check(path, f" (-{name})")
    if opt.optimState != "none" and opt.retrain == "none" and not resumed:
        raise InputError("-optimState needs the net it belongs to: give -retrain FILE")
    if data or opt.data:
        check_folder(opt)
    return opt


def check_first_epoch(opt):
    """Refuse an -epochNumber after the last epoch: the recipe has to be known."""
    if opt.epochNumber > opt.nEpochs and not opt.testOnly:
        first = f"-epochNumber {opt.epochNumber} is above -nEpochs {opt.nEpochs}"
        raise InputError(f"{first}: no epoch would be trained")


def follow_recipe(opt):
    """Set what neither the command line nor the checkpoint says to the recipe's."""
    epochs, rate, drops, shortcut = recipe(opt.netType, opt.dataset, opt.stem)
    known = opt.given | opt.adopted
    if "nEpochs" not in known or not opt.nEpochs:
        opt.nEpochs = epochs
    if "LR" not in known:
        opt.LR = rate
    if "shortcutType" not in known or not opt.shortcutType:
        opt.shortcutType = shortcut
    opt.drops = ("at", opt.LRSteps) if opt.LRSteps else drops


def follow_net(opt, config, resumed=False):
    """Let the options be those of a net, which may be from a file; names what was given in vain.

    config: the net's. The recipe follows the net, unless -netType says whose it is to be.
    resumed: a checkpoint says where the run goes on.
    """
    unused = _unused(opt, config)
    for name in sorted(opt.given & unused.keys()):
        note(f"=> -{name} {value_text(getattr(opt, name))} has no effect: {unused[name]}")
    if "netType" not in opt.given and opt.netType != config["net"]:
        opt.netType = config["net"]
        follow_recipe(opt)
    if not resumed:
        check_first_epoch(opt)
    for theirs, name in OF_THE_NET.items():
        value = config.get(theirs, getattr(opt, name))
        if name in opt.given - unused.keys() and getattr(opt, name) not in (value, ""):
            note(f"=> -{name} {value} as the model has, in place of {getattr(opt, name)} as given")
        setattr(opt, name, value)


def _unused(opt, config):
    """{option: why it changes nothing} for a net's configuration and the dataset."""
    net, unused = config["net"], {}
    if net in depths.NETS:  # a net of one's own may read any option
        unused = {
            name: f"a {net} has none" for key, name in OF_THE_NET.items() if key not in config
        }
    if config.get("bottleneck") == "resnet":
        one_path = "-bottleneckType resnet is ResNet's block, of one path"
        unused |= dict.fromkeys(("cardinality", "baseWidth"), one_path)
    if opt.stem != "imagenet":
        small = f"images of {opt.dataset} are tested as they are"
        unused |= dict.fromkeys(("testScale", "testCrop"), small)
    return unused


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
        rows.append(f"  -{name:<{width}} {text} [{value_text(default)}]")
    return "\n".join(rows)
