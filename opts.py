"""The options: one table, the recipes by net and dataset, the cross-checks. Port of opts.lua.

An option has the first of these values: given on the command line, the checkpoint's, in a test that
of the model's file, the recipe's, the table's default. `settle` says so once; nothing changes an
option afterwards. Imports nothing heavy, so that -help and option errors answer at once. Differs
from the Lua: names may be given with two dashes, values are checked against what exists, and the
options of ResNeXt and of fb.resnet.torch are one set. Errors are one sentence and exit status 2; 1
where a checkpoint or a model had to be read first.
"""

import os
import shlex
import sys

import datasets
from datasets import imagenet
from models import depths
from runtime import options, regular_files
from runtime.errors import InputError, shown
from runtime.options import LONGEST, Options, boolean, part, real, series, value_text, whole
from runtime.terminal import note

HEAD = """Usage: main.py [options]

ResNet / ResNeXt training script, a port of Torch-7's
See TRAINING.md for examples

Options:"""


WIDEST = 1 << 14  # widest first stage that we accept, in channels over all paths
PRECISIONS = ("single", "double", "half", "bfloat16", "tf32")

# Name, default, how the value is read, what it may be (words, the least number, or a range), help.
# fmt: off
OPTIONS = (
    # ---------- General options ----------
    ("data",            "",            str,     None, "Path to dataset"),
    ("dataset",         "imagenet",    str,     None, "Options: imagenet | cifar10 | cifar100 | digits"),
    ("manualSeed",      0,             whole,   None, "Manually set RNG seed"),
    ("nGPU",            1,             whole,   range(1, 2**16 + 1),    "Number of replicas, on any number of devices"),
    ("nProcs",          1,             whole,   range(1, 2**12 + 1),    "Processes on the CPU (1); the most on CUDA (one per device)"),
    ("backend",         "cudnn",       str,     ("cudnn", "cunn"), ""),
    ("cudnn",           "fastest",     str,     ("fastest", "default", "deterministic"), ""),
    ("gen",             "gen",         str,     None, "Path to save generated files"),
    ("precision",       "single",      str,     PRECISIONS, ""),
    ("compile",         False,         boolean, None, "Compile the training step (torch.compile)"),
    ("cudaGraph",       False,         boolean, None, "Replay the training step as a CUDA graph: small nets"),
    # ---------- Data options ----------
    ("nThreads",        2,             whole,   range(0, 2**12 + 1),    "number of data loading workers"),
    ("skipCorrupt",     False,         boolean, None, "Count and leave out unreadable images"),
    ("valShare",        0.0,           real,    0,    "Share of each class's training images to validate on (0: none)"),
    ("fold",            "",            part,    None, "Part of the training images to validate on, such as 3/5"),
    ("train",           "",            str,     None, "List of training images: a FILE, below -data or here, of paths and classes"),
    ("val",             "",            str,     None, "List of validation images, in the same way"),
    ("classOrder",      "text",        str,     ("text", "number"), "Order of the class folders, as text or as whole numbers"),
    # ---------- Training options ----------
    ("nEpochs",         0,             whole,   0,    "Number of total epochs to run (0: the recipe's)"),
    ("epochNumber",     1,             whole,   1,    "Manual epoch number (useful on restarts)"),
    ("batchSize",       32,            whole,   1,    "mini-batch size (1 = pure stochastic)"),
    ("testOnly",        False,         boolean, None, "Run on validation set only"),
    ("tenCrop",         False,         boolean, None, "Ten-crop testing"),
    ("trainCrop",       224,           whole,   range(1, LONGEST + 1),    "Side of the training image (ImageNet)"),
    ("testScale",       256,           whole,   range(1, LONGEST + 1),    "Shorter side of the test image (256, or 8/7 of -trainCrop)"),
    ("testCrop",        224,           whole,   range(1, LONGEST + 1),    "Side of the crop of the test image (224, or -trainCrop)"),
    ("testPool",        "windows",     str,     ("windows", "global"), "Pooling of a larger test image: windows as in training, or one mean"),
    ("recomputeBN",     0,             whole,   0,    "Batches to re-estimate batch norm over before a test (0: none)"),
    # ---------- Checkpointing options ----------
    ("save",            "checkpoints", str,     None, "Directory in which to save checkpoints"),
    ("resume",          "none",        str,     None, "Resume from the latest checkpoint in this directory"),
    ("saveEvery",       0.0,           real,    0,    "Minutes between saves inside an epoch (0: none)"),
    ("keep",            0,             whole,   0,    "Keep the files of the last N epochs (0: all)"),
    ("tensorboard",     False,         boolean, None, "Also write the log for TensorBoard"),
    ("progress",        "auto",        str,     ("auto", "lines"), "auto: show the time left on a terminal"),
    ("printEvery",      1,             whole,   1,    "Print the line of every N-th iteration, and of the last"),
    # ---------- Optimization options ----------
    ("LR",              0.1,           real,    0,    "initial learning rate"),
    ("warmup",          0,             whole,   0,    "Train the first N epochs at a tenth of the rate"),
    ("LRSteps",         (),            series,  None, "Epochs at which the rate drops x0.1 (none: the recipe's)"),
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
    ("freeze",          0,             whole,   0,    "Freeze the stem and the first N stages (0: nothing)"),
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
# Options that a resumed run does not take from its checkpoint. The command that resumes a run
# repeats those of AGAIN.
AGAIN = {"gen", "nThreads", "nProcs", "progress", "printEvery", "backend", "shareGradInput"}
ONLY_AT_FIRST = {"epochNumber", "retrain", "optimState", "resetClassifier"}  # not by a resumed run
OF_A_START = AGAIN | ONLY_AT_FIRST | {"save", "resume", "testOnly"}
# Files of a run that stand for its folder
OF_A_RUN = ("latest.pth", "model_best.pth", "inside_epoch.pth", "log.jsonl", "latest.t7")
# What a net's configuration says, under the names of the options
OF_THE_NET = {
    **{"depth": "depth", "cardinality": "cardinality", "base_width": "baseWidth"},
    **{"bottleneck": "bottleneckType", "shortcut": "shortcutType"},
}
# Options whose 0 or empty value means that the recipe decides
BLANK = {"nEpochs", "netType", "shortcutType", "data"}
# fmt: on


def parse(argv, program="main.py", head=HEAD, data=True):
    """The options of a command line, settled and checked; -help or one sentence of error exits.

    With -resume this is a first look, without checks: the rest depends on the checkpoint. Without
    `data` the run needs none: a folder of images is checked only where one is named.
    """
    with options.parsed(argv, program, head, OPTIONS) as given:
        opt = settle(given)
        if opt.resume == "none":
            check(opt, data)
        return opt


def resume_command(argv, save, program="main.py", table=OPTIONS):
    """The command that resumes a run in the folder `save`, which `argv` began.

    It names the program as it was started, unless that is in the current folder.
    """
    given = options.read_words(argv, table, [])
    kept = [row[0] for row in table if row[0] in given.keys() & AGAIN]
    words = [word for name in kept for word in (f"-{name}", value_text(given[name]))]
    started = sys.argv[0]
    is_here = os.path.abspath(started) == os.path.abspath(program)
    if os.path.basename(started) == program and not is_here:
        program = started
    return shlex.join(["python", program, "-resume", save, *words])


def fits(name, value, table=OPTIONS):
    """Whether an option can have this value, which a file holds."""
    return options.fits(name, value, table) and not (name == "momentum" and value == 0)


def settle(given, checkpoint=None, config=None, spec=None):
    """The options of a run, read-only. Each has the value of the first layer that names it.

    given: {option: value} of the command line. checkpoint: that of a resumed run (checkpoints.py).
    config: the configuration of a net from a file; what it says of the net is a fact, so it comes
    before what is given. spec: that net's input spec, whose sizes a test takes. The recipe is that
    of the net and the dataset; -netType chooses another.
    """
    facts = config and {name: config[key] for key, name in OF_THE_NET.items() if key in config}
    given = with_places(given)
    given = {name: value for name, value in given.items() if value or name not in BLANK}
    saved, default = saved_options(checkpoint), options.defaults(OPTIONS)
    known = Options(net=facts, given=given, checkpoint=saved, default=default)
    net = known.netType or (config["net"] if config else "")
    net = net or ("resnext" if OF_RESNEXT & given.keys() else "resnet")
    if net not in depths.NETS and not depths.is_own(net):
        known_nets = f"{', '.join(depths.NETS)}, or a file models/NAME.py"
        raise InputError(f"unknown netType {net!r}: should be one of {known_nets}")
    stem, sizes = datasets.module(known.dataset).stem, None
    if spec and known.testOnly and stem == "imagenet" and known.source("trainCrop") == "default":
        sizes = {"trainCrop": spec.get("trained", spec["crop"])}
        sizes |= {"testScale": spec["scale"], "testCrop": spec["crop"]}
        sizes |= {"testPool": spec.get("pool", "windows")}
    epochs, rate, drops, shortcut = recipe(net, known.dataset, stem)
    side = known.trainCrop
    derived = {
        **{"testScale": round(side * 256 / 224), "testCrop": side},
        **{"netType": net, "stem": stem, "shortcutType": shortcut, "nEpochs": epochs, "LR": rate},
        "drops": ("at", known.LRSteps) if known.LRSteps else drops,
        "data": "imagenet" if known.dataset == "imagenet" else "",
        "save": known.save if known.resume == "none" else known.resume,
    }
    layers = {"checkpoint": saved, "file": sizes, "recipe": derived, "default": default}
    return Options(net=facts, given=given, **layers)


def with_places(given):
    """The given options, with a run's best model for its folder, and its folder for its files."""
    given, resumed = dict(given), given.get("resume", "none")
    if given.get("save") == "none":
        instead = "to save to a folder called none, give -save ./none"
        raise InputError(f"-save none is reserved; {instead}")
    if "retrain" in given:
        given["retrain"] = regular_files.model_file(given["retrain"])
    if os.path.isdir(resumed):
        return given
    resumed = resumed.rstrip("/")
    if os.path.islink(resumed):  # the rest of the run lies where the link leads
        resumed = os.path.realpath(resumed)
    folder, name = os.path.split(resumed)
    if name in OF_A_RUN:
        given["resume"] = folder or "."
    elif os.path.isfile(resumed):
        back = "docs/files.md says how to go back to an earlier epoch"
        raise InputError(f"-resume {resumed} is a file: give its folder, {folder or '.'}; {back}")
    return given


def saved_options(checkpoint, table=OPTIONS):
    """The options that a resumed run takes from its checkpoint; None without a checkpoint.

    InputError for a value that the option cannot have.
    """
    if checkpoint is None:
        return None
    of_the_run = {row[0] for row in table} - OF_A_START
    saved = {n: v for n, v in checkpoint["options"].items() if n in of_the_run}
    for name, value in saved.items():
        if not fits(name, value, table):
            fault = f"its -{name} is {shown(value)}"
            raise InputError(f"{checkpoint['file']} is not a checkpoint of this program: {fault}")
    return {name: value for name, value in saved.items() if value or name not in BLANK}


def check(opt, data=True):
    """Refuse what cannot work together."""
    resumed, from_file = "checkpoint" in opt.layers, opt.retrain != "none"
    if opt.momentum == 0:
        raise InputError("-momentum 0: Nesterov momentum requires a momentum; give e.g. 0.9")
    check_split(opt)
    if opt.cardinality * opt.baseWidth > WIDEST:
        paths = f"-cardinality {opt.cardinality} paths of -baseWidth {opt.baseWidth} channels"
        raise InputError(f"{paths}: the paths should have at most {WIDEST} together")
    if opt.shareGradInput and opt.optnet:
        raise InputError("cannot use both -shareGradInput and -optnet: leave one out")
    if opt.freeze and not from_file and not resumed:
        raise InputError("-freeze needs trained weights: give -retrain FILE")
    if opt.tenCrop and opt.stem != "imagenet":
        raise InputError("-tenCrop true needs -dataset imagenet: small images are not cropped")
    if opt.warmup and opt.warmup >= opt.nEpochs:
        raise InputError(f"-warmup {opt.warmup} should be less than -nEpochs {opt.nEpochs}")
    net_known = not from_file or "net" in opt.layers  # before, its file has not been read
    if opt.testCrop > opt.testScale and (net_known or not opt.testOnly):
        raise InputError(f"-testCrop {opt.testCrop} is larger than -testScale {opt.testScale}")
    if opt.recomputeBN and opt.batchSize <= opt.nGPU:
        raise InputError("-recomputeBN needs two images per replica: a -batchSize above -nGPU")
    if opt.epochNumber > opt.nEpochs and net_known and not resumed and not opt.testOnly:
        first = f"-epochNumber {opt.epochNumber} is above -nEpochs {opt.nEpochs}"
        raise InputError(f"{first}: no epoch would be trained")
    if not from_file and not resumed and opt.netType in depths.NETS:
        depths.stages(opt.netType, opt.stem, opt.depth)
    for name in () if resumed else ("retrain", "optimState"):
        path = getattr(opt, name)
        if path != "none" and not path.startswith("torchvision:"):  # formats/ knows these names
            regular_files.check_input(path, f" (-{name})")
    if opt.optimState != "none" and not from_file and not resumed:
        raise InputError("-optimState needs the net it belongs to: give -retrain FILE")
    if data or opt.source("data") != "recipe":
        check_folder(opt)


def report(opt, config):
    """Say which options are not the defaults, which were given in their place, which do nothing.

    config: the net's.
    """
    unused, net = _unused(opt, config), config["net"]
    others = {*OF_THE_NET.values(), *unused}
    if opt.given.get("netType", net) != net:
        note(f"=> -netType {opt.netType} chooses the recipe alone: the model is a {net}")
        others.add("netType")
    report_saved(opt, others)
    sizes = [n for n in ("testScale", "testCrop", "testPool") if opt.source(n) == "file"]
    sizes = [n for n in sizes if getattr(opt, n) != opt.layers["default"][n]]
    if sizes:
        words = " ".join(f"-{name} {getattr(opt, name)}" for name in sizes)
        note(f"=> {words} as the model's file says")
    for name in sorted(opt.given.keys() & unused.keys()):
        note(f"=> -{name} {value_text(opt.given[name])} has no effect: {unused[name]}")
    for name, value in opt.layers.get("net", {}).items():
        if name not in unused and opt.given.get(name, value) != value:
            note(f"=> -{name} {value} as the model has, in place of {opt.given[name]} as given")


def report_saved(opt, others=()):
    """Say which options are the checkpoint's, and which of its were given another value.

    others: options of which another line says whether a given value counts.
    """
    saved, default = opt.layers.get("checkpoint", {}), opt.layers["default"]
    adopted = []
    for name, theirs in saved.items():
        if name not in opt.given:
            if theirs != default[name]:
                adopted.append(f"-{name} {value_text(theirs)}")
        elif opt.given[name] != theirs and name not in others:
            instead = f"in place of the checkpoint's {value_text(theirs) or 'none'}"
            note(f"=> -{name} {value_text(opt.given[name])} as given, {instead}")
    if adopted:
        note(f"=> from the checkpoint: {' '.join(adopted)}")
    for name in sorted(opt.given.keys() & ONLY_AT_FIRST) if "checkpoint" in opt.layers else ():
        if opt.given[name] != default[name]:
            value = value_text(opt.given[name])
            note(f"=> -{name} {value} has no effect: the run resumes from its checkpoint")


def report_cuda(opt, trains, inexact=""):
    """On a GPU: say what -precision single is, and whether a resumed run has the same bits.

    trains: whether there will be a run to resume. inexact: why its bits differ with any -cudnn.
    """
    import torch

    generation, _ = torch.cuda.get_device_capability()
    faster = "tf32 and bfloat16" if generation >= 8 else "half"  # since Ampere, since Volta
    if opt.precision == "single" and generation >= 7:  # by how much was not measured yet
        note(f"=> -precision single is IEEE float32; {faster} should be faster on this GPU")
    if not trains:
        return
    same = opt.cudnn == "deterministic" and not inexact
    kept = "has the same bits" if same else "is equal up to rounding"
    why = inexact or ("" if same else "; give -cudnn deterministic for the same bits")
    note(f"=> -cudnn {opt.cudnn}: a resumed run {kept}{why}")


def _unused(opt, config):
    """{option: why it changes nothing} for a net's configuration and the dataset."""
    net, unused = config["net"], {}
    if net in depths.NETS:  # a net of one's own may read any option
        unused = {
            name: f"a {net} has none" for key, name in OF_THE_NET.items() if key not in config
        }
    if config.get("bottleneck") == "resnet":
        one_path = "-bottleneckType resnet is ResNet's block, which has one path"
        unused |= dict.fromkeys(("cardinality", "baseWidth"), one_path)
    if opt.dataset == "digits":
        unused["data"] = "the digits come with scikit-learn"
    if opt.dataset != "imagenet":
        unused["classOrder"] = f"{opt.dataset} has no class folders"
    if opt.stem != "imagenet":
        small = f"images of {opt.dataset} are taken as they are"
        unused |= dict.fromkeys(("trainCrop", "testScale", "testCrop", "testPool"), small)
    return unused


def recipe(net, dataset, stem):
    """The line of RECIPES for a net and a dataset."""
    for name in (net, LIKE.get(net, "resnext")):
        for data in (dataset, stem):
            if (name, data) in RECIPES:
                return RECIPES[name, data]
    raise InputError(f"opts.RECIPES has no line for {net} on {dataset}")


def check_split(opt):
    """Refuse lists for other datasets, and a share of images that cannot be held out."""
    if (opt.train or opt.val) and opt.dataset != "imagenet":
        raise InputError(f"-train and -val list image files, which {opt.dataset} does not have")
    if opt.valShare >= 1:
        raise InputError(f"-valShare {opt.valShare}: should be a share below 1, such as 0.2")
    if opt.valShare and opt.fold:
        kept = "a resumed run keeps the one that it began with"
        raise InputError(f"-valShare and -fold both hold images out: give one; {kept}")
    if opt.train and opt.given.get("classOrder") == "number":
        fixed = "a list's classes are sorted as numbers if all are numbers"
        raise InputError(f"-classOrder number orders class folders, and {fixed}: leave it out")


def check_folder(opt):
    """Refuse a folder that is not laid out as ImageNet's; a test alone needs no train/."""
    from datasets import image_lists  # not at the top: -help does not need it

    if opt.dataset != "imagenet":
        return
    held_out = datasets.holds_out(opt)
    alone = opt.testOnly and not opt.recomputeBN and not held_out
    splits = ("val",) if alone else ("train", "val")
    given = [split for split in ("train", "val") if image_lists.find(opt, split)]
    if not given:
        imagenet.check_folders(opt.data, splits, held_out)
        return
    for split in splits:
        made = split in given or (split == "val" and held_out)
        if not made and not os.path.isdir(os.path.join(opt.data, split)):
            share = ", or -valShare 0.2, which holds out a fifth of them" if split == "val" else ""
            raise InputError(f"-{given[0]} lists only a part: give -{split} FILE as well{share}")
