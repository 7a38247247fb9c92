"""Fine-tunes a classifier into a detector, Faster R-CNN, and tests it: the paper's Table 8.

Files, resuming, replicas, processes and signals work as in main.py, by the same code.
"""

import json
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # for python -P and -I

import datasets
import models
import opts
from datasets import imagenet
from main import opened, replicas, train_epochs
from parallel import guard, launch
from parallel.signals import Interrupts
from runtime import options, process, regular_files
from runtime.errors import InputError, cut
from runtime.options import LONGEST, Options, boolean, real, series, value_text, whole
from runtime.progress import Clock, slow
from runtime.terminal import note, say

HEAD = """Usage: detect.py -retrain CLASSIFIER [options]
       detect.py DETECTOR -show PHOTO [options]

Trains Faster R-CNN from a trained classifier (a file, or torchvision:NAME), by the paper's recipe:
first the RPN step, then the Fast R-CNN step on its proposals. With -shared true it trains one net
with both losses. With -show it draws what a trained detector finds in a photo.

A default of 0 or nothing means the recipe's value, by -dataset and -shared (docs/detection.md).

Options:"""

# rows that are the same as in opts.py
_SHARED = (
    *("data", "manualSeed", "nGPU", "nProcs", "gen", "precision", "nThreads"),
    *("skipCorrupt", "testOnly", "resume", "saveEvery", "keep", "tensorboard", "progress"),
    *("momentum", "weightDecay", "retrain", "resetClassifier", "optnet", "printEvery"),
)
DATASETS = ("coco", "digits")
SIDES = range(LONGEST + 1)  # 0: the recipe's
# fmt: off
OPTIONS = (
    ("dataset",       "coco",      str,          DATASETS, "coco: any data in COCO's layout; digits: scenes of digits"),
    *(row for row in opts.OPTIONS if row[0] in _SHARED),
    # fastest would time cuDNN's algorithms again for each size of image
    *((name, "default", *more) for name, _, *more in opts.OPTIONS if name == "cudnn"),
    ("save",          "detector",  str,          None, "Directory in which to save checkpoints"),
    ("train",         "train2017", str,          None, "Training images: NAME of annotations/instances_NAME.json, or a .json below -data or here"),
    ("val",           "val2017",   str,          None, "Validation images, in the same way"),
    ("trainImages",   "",          str,          None, "Folder of the training images, below -data or here (empty: as -train says)"),
    ("valImages",     "",          str,          None, "Folder of the validation images (empty: as -val says)"),
    ("shared",        False,       boolean, None, "Train one net with both losses (false: the paper's two steps)"),
    ("rpnBatchSize",  0,           whole,   0,    "Images in an iteration of the RPN step"),
    ("rpnLR",         0.0,         real,    0,    "Learning rate of the RPN step"),
    ("rpnIterations", (),          series,  None, "Iterations where the rate of the RPN step drops x0.1; the last one ends the step"),
    ("batchSize",     0,           whole,   0,    "Images in an iteration of Fast R-CNN, or with -shared"),
    ("LR",            0.0,         real,    0,    "Learning rate of Fast R-CNN, or with -shared"),
    ("iterations",    (),          series,  None, "Iterations where that rate drops x0.1; the last one ends the training"),
    ("warmup",        -1,          whole,   -1,   "Iterations over which the rate rises at the start of a step (-1: as in the recipe)"),
    ("epochSize",     0,           whole,   0,    "Iterations between two tests (0: a pass over the images)"),
    ("regions",       0,           whole,   0,    "Regions per image in training"),
    ("anchors",       (),          series,  None, "Sides of the anchors in pixels"),
    ("scale",         0,           whole,   SIDES, "Shorter side of an image in pixels"),
    ("largest",       0,           whole,   SIDES, "Limit of the longer side in pixels"),
    ("freeze",        -1,          whole,   -1,   "Stages to freeze; the first layers count as one (-1: as in the recipe)"),
    ("recomputeBN",   0,           whole,   0,    "Batches of classification data to re-estimate batch norm over first"),
    ("bnData",        "imagenet",  str,          None, "Folder of the data for -recomputeBN, as for main.py's -data (digits need none)"),
    ("maxBoxes",      100,         whole,   1,    "Maximum number of boxes that a test finds in an image"),
    ("leastScore",    0.05,        real,    0,    "Minimum score of a box in a test"),
    ("nms",           0.0,         real,    0,    "IoU above which a test drops the box of lower score (0: 0.5 if shared, else 0.3)"),
    ("show",          "",          str,          None, "Draw what is found in this photo or folder, or in this test scene of the digits (a number)"),
    ("minScore",      0.5,         real,    0,    "Draw boxes with this score or more"),
    ("out",           "",          str,          None, "File or folder for what -show draws, or the results (.json) of -testOnly"),
)

# By dataset and -shared. The first is the paper's (appendix B). The second is detectron2's R50-C4 1x,
# except for the anchors, the size of the images (there 640 to 800, at random) and the proposals in a
# test (there 1000 after NMS). Those for the digits were found by trial.
# proposals: before and after NMS in training, then before and after NMS in a test.
_COCO = {"anchors": (64, 128, 256, 512), "scale": 600, "largest": 1000, "freeze": 2}
_COCO |= {"proposals": (12000, 2000, 6000, 300), "pool": 14}
_DIGITS = {"anchors": (8, 16), "scale": 64, "largest": 64, "freeze": 0, "batchSize": 8}
_DIGITS |= {"proposals": (1000, 300, 500, 64), "regions": 32, "pool": 8}
RECIPES = {
    ("coco", False): _COCO | {
        "rpnBatchSize": 16, "rpnLR": 0.02, "rpnIterations": (120000, 180000),
        "batchSize": 8, "LR": 0.005, "iterations": (120000, 180000), "regions": 64, "warmup": 0,
    },
    ("coco", True): _COCO | {
        "batchSize": 16, "LR": 0.02, "iterations": (60000, 80000, 90000), "regions": 512, "warmup": 1000,
    },
    ("digits", False): _DIGITS | {
        "rpnBatchSize": 8, "rpnLR": 0.02, "rpnIterations": (100, 125),
        "batchSize": 4, "LR": 0.02, "iterations": (880, 1100), "warmup": 50,
        "proposals": (1000, 300, 500, 150),  # this RPN ranks worse: 64 miss a seventh of the digits
    },
    ("digits", True): _DIGITS | {"LR": 0.02, "iterations": (600, 750), "warmup": 50},
}
# fmt: on


def main(argv=None):
    """Train, test or show as the command line says."""
    end = guard.end if argv is None else None  # a caller in Python goes on after the run
    argv = sys.argv[1:] if argv is None else list(argv)
    opt = parse(argv)
    process.spin_briefly()

    asked = opt.given.get("nProcs")
    count = 1 if opt.show else launch.processes(asked, replicas(opt))
    if count > 1:
        sys.exit(launch.run("detect.py", argv, count, None if opt.testOnly else opt.save))
    run(opt, argv, end)


def parse(argv):
    """The options, settled and checked; -help or one sentence of error exits.

    With -resume this is a first look, without checks: the rest depends on the checkpoint.
    """
    words = []
    with options.parsed(argv, "detect.py", HEAD, OPTIONS, words) as given:
        if len(words) > 1:
            raise InputError(f"unexpected word {words[1]!r}: give one detector at a time")
        if words and "retrain" in given:
            raise InputError("give the detector as a word or as -retrain, not both")
        opt = settle({**given, "retrain": words[0]} if words else given)
        if opt.show or opt.resume == "none":
            check_options(opt)
        return opt


def settle(given, checkpoint=None):
    """The options of a run, read-only, in layers as in opts.settle."""
    given = opts.with_places(given)
    default, saved = options.defaults(OPTIONS), opts.saved_options(checkpoint, OPTIONS)
    known = Options(given=given, checkpoint=saved, default=default)
    recipe = {
        **RECIPES[known.dataset, known.shared],
        "data": known.dataset if known.dataset == "coco" else "",
        "save": known.save if known.resume == "none" else known.resume,
    }

    if known.show:
        is_folder = os.path.isdir(known.show) and not _is_scene(known)
        name = f"scene{known.show:.9}" if _is_scene(known) else os.path.abspath(known.show)
        name = os.path.basename(name if is_folder else os.path.splitext(name)[0])
        recipe["out"] = f"{name}_detected{'' if is_folder else '.png'}"

    def decided(layer):  # without values such as 0, which leave it to the recipe
        blank = {name for name in recipe if name in layer and layer[name] == default.get(name)}
        return {name: value for name, value in layer.items() if name not in blank - {"save"}}

    saved = saved and decided(saved)
    return Options(given=decided(given), checkpoint=saved, recipe=recipe, default=default)


def _is_scene(opt):
    """Whether -show is the number of a scene and not a photo."""
    return opt.dataset == "digits" and re.fullmatch("[0-9]+", opt.show)


def check_options(opt):
    """Refuse what cannot work together."""
    if "checkpoint" not in opt.layers:
        if opt.retrain == "none":
            what = "a detector" if opt.show else "the classifier to start from"
            raise InputError(f"give {what}: -retrain model_best.pth")
        if not opt.retrain.startswith("torchvision:"):
            regular_files.check_input(opt.retrain, " (-retrain)")
    for name in ("minScore", "leastScore", "nms"):
        if getattr(opt, name) > 1:
            raise InputError(f"-{name} {getattr(opt, name):g}: should be 0 to 1")
    if opt.show:
        _check_show(opt)
        return
    if opt.momentum == 0:
        raise InputError("-momentum 0: a run without momentum cannot be resumed; give e.g. 0.9")
    if opt.regions < 4:
        raise InputError(f"-regions {opt.regions}: give 4 or more; a quarter of them are objects")
    if opt.anchors[0] < 2:
        raise InputError("-anchors 1: give 2 or more, because half of 1 is rounded to 0")
    if "out" in opt.given and not opt.testOnly:
        raise InputError("-out is for -testOnly true or -show; training writes detections.json")
    if "bnData" in opt.given and (not opt.recomputeBN or opt.dataset == "digits"):
        raise InputError("-bnData only goes with -recomputeBN N and -dataset coco: leave it out")
    if opt.recomputeBN and opt.dataset == "coco" and "checkpoint" not in opt.layers:
        imagenet.check_folders(opt.bnData, ["train"], True, "-bnData")
    if opt.out and opt.testOnly:
        places = [opt.val, os.path.join("annotations", f"instances_{opt.val}.json")]
        files = [opt.retrain, *(os.path.join(opt.data, place) for place in places)]
        regular_files.check_outputs([("-out", opt.out, (".json",))], files)


def _check_show(opt):
    if os.path.isdir(opt.show) and not _is_scene(opt):
        if os.path.realpath(opt.out) == os.path.realpath(opt.show):
            raise InputError(f"-out {opt.out}: give another folder than -show's")
        return
    if not _is_scene(opt):
        regular_files.check_input(opt.show, " (-show)")
    endings = (".png", ".jpg", ".jpeg")
    regular_files.check_outputs([("-out", opt.out, endings)], [opt.retrain, opt.show])


def run(start, argv, end):
    """One process's part of the run that `argv` asks for.

    start: the options of `argv`, before a checkpoint adds its own. end: see Interrupts.
    """
    import torch

    import dataloader
    from detection import schedule, scores, show
    from detection.trainer import Trainer
    from engine.metrics import Reporter
    from storage import log

    if start.show:
        show.photos(start)
        return
    scores.implementation()  # an error before the training if it is missing
    with opened(start) as (folder, checkpoint, given, device):
        opt = settle(given, checkpoint)
        check_options(opt)
        opts.report_saved(opt)
        torch.manual_seed(opt.manualSeed)
        opt, steps, val_loader = data(opt, device)
        opt, model = setup(opt, checkpoint, val_loader.dataset.source.names, device)
        if device.type == "cuda":
            opts.report_cuda(opt, not opt.testOnly, ", because RoIAlign adds in no fixed order")

        last, every = (steps[-1].last, steps[-1].every) if steps else (0, 0)
        command = opts.resume_command(argv, opt.save, "detect.py", OPTIONS)
        trainer = Trainer(
            model,
            device,
            steps,
            **{"seed": opt.manualSeed, "momentum": opt.momentum, "decay": opt.weightDecay},
            precision=opt.precision,
            data=dataloader.fingerprints([*(s.loader for s in steps[-1:]), val_loader]),
            reporter=Reporter(Clock(last, every, val_loader.size()), opt.printEvery),
            interrupts=Interrupts(opt.saveEvery, opt.save, command, end),
        )
        if opt.testOnly:
            test(0, trainer, val_loader, opt.out)
            return
        if checkpoint:
            trainer.load_state(checkpoint)

        def loader(epoch):
            return schedule.Epoch(next(step for step in steps if epoch <= step.last), epoch)

        def test_epoch(epoch):
            return test(epoch, trainer, val_loader, os.path.join(opt.save, "detections.json"))

        def line(epoch, scores):
            images = loader(epoch).images() + val_loader.dataset.size()
            return log.entry(trainer, scores, best(folder.best), images)

        folder.begin(opt, checkpoint, model, device)
        epochs = range(checkpoint["epoch"] + 1 if checkpoint else 1, last + 1)
        train_epochs(epochs, trainer, loader, test_epoch, line, folder)
        found = best(folder.best)
        if found:
            say(f" * Finished AP: {found['AP']:6.3f}  AP50: {found['AP50']:6.3f}")
        show.sheet_of(trainer.found, val_loader.dataset, model, opt)


def best(errors):
    """The best scores so far; {} if no test had an object to find."""
    return {name: 100 - error for name, error in zip(("AP", "AP50"), errors) if error <= 100}


def data(opt, device):
    """(the options of the run, its steps, the loader of the validation images).

    A test alone has no steps. A schedule that is not given follows the number of images.
    """
    import dataloader
    from detection import images, schedule
    from parallel import group

    train, val = group.rank_0_first(lambda: images.create(opt))
    both = {"device": device, **dataloader.settings(opt, device)}
    val_loader = dataloader.DataLoader(val, training=False, batch_size=opt.batchSize, **both)
    if opt.testOnly:
        return opt, [], val_loader
    opt = schedule.fitted(opt, train.size())
    rpn = "rpn", opt.rpnLR, opt.rpnIterations, opt.rpnBatchSize
    last = "shared" if opt.shared else "fast", opt.LR, opt.iterations, opt.batchSize
    steps = []
    for step in [last] if opt.shared else [rpn, last]:
        loader = dataloader.DataLoader(train, training=True, batch_size=step[-1], **both)
        first, every = steps[-1].last + 1 if steps else 1, opt.epochSize or loader.size()
        steps.append(schedule.Step(*step, opt.warmup, loader, every, first))
    say(f"=> {train.summary()}; {steps[-1].last} epochs of {steps[-1].every} iterations")
    return opt, steps, val_loader


def setup(opt, checkpoint, names, device):
    """(the options, the detector on its device): of the checkpoint, of a file, or of a classifier.

    A detector keeps its own settings, except for those that are given.
    """
    import torch

    from detection import files
    from models.blocks import set_recompute
    from runtime.precision import Precision

    settings = {name: getattr(opt, name) for name in ("regions", "scale", "largest")}
    caps = files.caps(opt)
    given = {name: value for name, value in settings.items() if name in opt.given} | caps
    models.set_backend(opt.cudnn, opt.precision)
    source = checkpoint["modelFile"] if checkpoint else opt.retrain
    say(f"=> Resuming model from {source}" if checkpoint else f"Loading model from file: {source}")
    saved = files.is_detector(source)
    if saved is not None or checkpoint:
        model = files.load_detector(source, saved, **given)
        fixed = {"recomputeBN": 0, "bnData": "", **(checkpoint["options"] if checkpoint else {})}
        fixed["anchors"] = tuple(model.config["anchors"])
        for name in ("anchors", "recomputeBN", "bnData"):
            if name in opt.given and opt.given[name] != fixed[name]:
                value = value_text(opt.given[name])
                raise InputError(f"-{name} {value} is only for a run that starts from a classifier")
        if opt.resetClassifier and not opt.testOnly and not checkpoint:
            model.reset_classes(names)
    elif opt.testOnly:
        raise InputError(f"{source} is a classifier: -testOnly needs a detector")
    else:
        net = models.load_file(source, classifier=False)
        if opt.recomputeBN:
            recompute(opt, net, device)
        own = {"shared": opt.shared, "pool": opt.pool}
        own |= {"anchors": list(opt.anchors), "proposals": list(opt.proposals)}
        model = files.from_classifier(net.float(), settings | own | caps, names)
    if model.classes != names:
        others = sorted({*names} ^ {*model.classes})
        how = f"{others[0]!r} is only in one of the two" if others else "their order differs"
        raise InputError(
            f"the model has {len(model.classes)} classes, which are not the {len(names)} of the "
            f"data: {how}; to train the model for these, give -resetClassifier true"
        )
    if model.config["shared"] != opt.shared and not opt.testOnly:
        trained = value_text(model.config["shared"])
        raise InputError(
            f"-shared {value_text(opt.shared)}: the detector was trained with -shared {trained}"
        )
    for trunk in (model.backbone, model.rpn_trunk):
        trunk.freeze_first(opt.freeze)
    if opt.optnet:
        set_recompute(model)
    own = {name: model.config[name] for name in settings}
    opt = opt.replaced(**own, anchors=tuple(model.config["anchors"]))
    dtype = Precision(opt.precision, device).dtype
    return opt, model.to(device, dtype, memory_format=torch.channels_last)


def recompute(opt, net, device):
    """Re-estimate the classifier's batch norm over -recomputeBN batches of its own data."""
    import dataloader
    from datasets.input_spec import training_side
    from engine import batchnorm
    from parallel import group
    from runtime.precision import Precision

    given = {"dataset": "digits"} if opt.dataset == "digits" else {"data": opt.bnData}
    given["trainCrop"] = training_side(net.input_spec)
    own = opts.settle({**given, "gen": opt.gen, "manualSeed": opt.manualSeed})
    train, _ = group.rank_0_first(lambda: datasets.create(own))
    batchnorm.check_input(net, train, own.dataset)
    precision = Precision(opt.precision, device)
    both = {"batch_size": 32 * opt.nGPU, **dataloader.settings(opt, device)}
    loader = dataloader.DataLoader(train, device, training=True, **both)
    net.to(device, precision.dtype, memory_format=dataloader.LAYOUT).train()
    batchnorm.recompute(net, loader, 1, opt.recomputeBN, precision, Interrupts())
    group.broadcast(net.buffers())
    net.to("cpu")


def test(epoch, trainer, loader, out):
    """Test and score; returns scores.evaluate's values, or in the RPN step {"recall": %}.

    {} if the images have no objects.
    """
    from detection import scores
    from parallel import group
    from storage import atomic

    total, values = trainer.test(epoch, loader), None
    if trainer.step_name == "rpn":
        values = {"recall": total.recall} if total.objects else {}
    elif group.rank() == 0:
        source = loader.dataset.source
        found = scores.results(trainer.found, source.ids, source.categories)
        if out:
            try:
                atomic.write(out, json.dumps(found).encode())
            except InputError as error:
                if not epoch:  # a test alone is for this file
                    raise
                note(f"=> {error}")
        with slow(f"scoring {len(found)} boxes"):
            values = scores.evaluate(source, trainer.found)
    values = group.all_gather(values)[0]
    for name, value in values.get("classes", {}).items():
        say(f" | AP {value:7.3f}  {cut(name, 40)}")
    text = "  ".join(f"{name}: {values[name]:7.3f}" for name in values if name != "classes")
    say(f" * Finished epoch # {epoch}     {text or 'no objects'}\n")
    return values


if __name__ == "__main__":
    guard.guard(main)
