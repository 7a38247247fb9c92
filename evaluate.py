"""Tests trained models: larger images, ten crops, dense at several scales, ensembles.

These are the tests of the paper's Tables 5 and 6, for model files of any kind. Every image counts
once, with any number of processes.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # for python -P and -I

import datasets
import opts
from parallel import launch
from parallel.guard import guard
from parallel.signals import Interrupts
from runtime import options, process, regular_files
from runtime.errors import InputError
from runtime.options import LONGEST, Options, boolean, series, whole
from runtime.terminal import Terminal
from storage import pictures

HEAD = """Usage: evaluate.py MODEL... [options]

Tests models on the validation images of a dataset. MODEL is a file (.pth, .t7, .safetensors,
or .onnx of convert.py), torchvision:NAME, or a run folder, whose model_best.pth is taken. Several
form an ensemble.

Where an image has several outputs (crops, positions, mirror images, scales, models), there are two
results: by the mean of the outputs and by the mean of their softmax. Scales and models have equal
weights.

Options:"""

# options that mean the same as in opts.py
_SHARED = (
    *("data", "dataset", "train", "val", "valShare", "fold", "manualSeed", "classOrder"),
    *("gen", "precision", "nThreads", "skipCorrupt", "batchSize", "tenCrop", "progress"),
    *("printEvery", "nProcs", "cudnn"),
)
LENGTHS = range(LONGEST + 1)


def files(text):
    """File names separated by commas."""
    return tuple(text.split(","))


# fmt: off
OPTIONS = (
    *(row for row in opts.OPTIONS if row[0] in _SHARED),
    ("testScale",   0,     whole,   LENGTHS, "Shorter side of the test image (0: as the model says)"),
    ("testCrop",    0,     whole,   LENGTHS, "Side of the crop of the test image (0: as the model says)"),
    *(row for row in opts.OPTIONS if row[0] == "testPool"),
    ("dense",       (),    series,  None, "Test whole images at these scales: 224,256,288,320,352"),
    ("flip",        False, boolean, None, "Test the mirror images as well"),
    ("classes",     "",    str,          None, "Class names, one per line, or a folder of class folders: test among these"),
    ("recomputeBN", 0,     whole,   0,    "Batches to re-estimate batch norm over first (0: none)"),
    ("predictions", "",    str,          None, "Write each image's five best classes: FILE.csv"),
    ("classErrors", "",    str,          None, "Write the errors by class: FILE.csv"),
    ("confusion",   (),    files,        None, "Write the confusion matrix: FILE.csv, .png, .svg, or several: a.csv,a.png"),
    ("scores",      "",    str,          None, "Write every class's logit of each image: FILE.npy, or .csv"),
    ("temperature", False, boolean,      None, "Fit a temperature to -scores; print the calibration error"),
)
# fmt: on


def main(argv=None):
    """Test as the command line says; returns the errors of ensemble.test."""
    argv = sys.argv[1:] if argv is None else list(argv)
    opt = parse(argv)
    process.spin_briefly()
    count = launch.available(opt.given.get("nProcs"))
    if count > 1:
        sys.exit(launch.run("evaluate.py", argv, count))
    with Terminal(opt.progress):
        return test(opt)


def test(opt):
    """Test in this process, as the options say; returns the errors of ensemble.test."""
    # imported here, so that -help and option errors do not wait for torch
    import torch

    import models
    from dataloader import DataLoader, settings
    from datasets.input_spec import training_side
    from engine import batchnorm
    from evaluation import classes, ensemble, logits, predictions
    from models.fold import folded
    from parallel import group
    from runtime.precision import Precision

    device = group.join()
    # with -dense, images differ in size, and cuDNN would time its algorithms again for each size
    cudnn = opt.given.get("cudnn", "default") if opt.dense else opt.cudnn
    models.set_backend(cudnn, opt.precision)
    if device.type == "cuda":
        opts.report_cuda(opt, trains=False)
    precision = Precision(opt.precision, device)
    form = {"dtype": precision.dtype, "memory_format": torch.channels_last}
    nets = [models.load(source, device).to(**form) for source in opt.models]

    sides = [training_side(net.input_spec) for net in nets]
    trained = as_trained(opt).replaced(trainCrop=sides[0])
    train, val, *_ = group.rank_0_first(lambda: datasets.create_split(trained))
    data = list(datasets.module(opt.dataset).classes(trained))
    names = [classes.outputs(source, net, data) for source, net in zip(opt.models, nets)]
    listed = opt.classes or None
    tested = classes.read_names(listed) if listed else names[0]
    if len(nets) > 1:  # leave out outputs without a name, which -nClasses adds
        tested = [name for name in tested if name is not None]
    columns = [classes.columns(s, n, tested, listed) for s, n in zip(opt.models, names)]
    indices, targets = classes.targets(val, data, tested, listed)

    both = settings(opt, device)
    views = [ensemble.views(net, val, opt) for net in nets]
    if opt.recomputeBN:
        for net, side in zip(nets, sides):
            batchnorm.check_input(net, train, opt.dataset)
            if side != trained.trainCrop:
                trained = trained.replaced(trainCrop=side)
                train, *_ = datasets.create_split(trained)
            loader = DataLoader(train, device, training=True, batch_size=opt.batchSize, **both)
            batchnorm.recompute(net.train(), loader, 0, opt.recomputeBN, precision, Interrupts())
    images = ensemble.Views(val, indices, targets, list(dict.fromkeys(sum(views, []))))
    size = max(1, opt.batchSize // images.crops())  # in images
    loader = DataLoader(images, device, training=False, batch_size=size, **both)
    members = [
        ensemble.Member(
            folded(net, precision.mixed),
            [images.views.index(view) for view in own],
            outputs.to(device),
            ensemble.window(net, val, opt),
        )
        for net, own, outputs in zip(nets, views, columns)
    ]
    wanted = opt.predictions or opt.classErrors or opt.confusion or opt.scores
    size = images.size(), len(tested)
    with logits.opened(opt.scores, size) as scores:
        found = predictions.Predictions(*size, device, scores) if wanted else None
        results = ensemble.test(members, loader, opt, precision, found)
        if wanted:
            predictions.write(found, images, tested, opt)
    return results


def parse(argv):
    """The options, with the models in `opt.models`; -help or one sentence of error exits."""
    words = []
    with options.parsed(argv, "evaluate.py", HEAD, OPTIONS, words) as given:
        if not words:
            raise InputError("give a model: evaluate.py MODEL... [options] (-help says more)")
        recipe = {"data": "imagenet" if given.get("dataset", "imagenet") == "imagenet" else ""}
        models = {"models": [regular_files.model_file(word) for word in words], "nGPU": 1}
        default = options.defaults(OPTIONS)
        opt = Options(words=models, given=given, recipe=recipe, default=default)
        check_options(opt)
        return opt


def as_trained(opt):
    """The options that the dataset had in training, before -testScale, -testCrop and -tenCrop."""
    return opt.replaced(trainCrop=224, testScale=256, testCrop=224, tenCrop=False, testOnly=True)


def check_options(opt):
    """Refuse what cannot work together."""
    for path in opt.models:
        if not path.startswith("torchvision:"):
            regular_files.check_input(path)
    datasets.module(opt.dataset)
    opts.check_split(opt)
    if opt.dense and (opt.tenCrop or opt.testScale or opt.testCrop):
        raise InputError("-dense tests whole images: leave out -tenCrop, -testScale and -testCrop")
    if opt.dense and opt.dense[-1] not in LENGTHS:  # the scales ascend
        raise InputError(f"-dense {opt.dense[-1]}: scales should be at most {LENGTHS[-1]}")
    if opt.tenCrop and opt.flip:
        raise InputError("-tenCrop true includes mirror images: leave out -flip")
    if opt.recomputeBN and opt.batchSize < 2:
        raise InputError("-recomputeBN needs a -batchSize of at least two images")
    if opt.classes and not os.path.isdir(opt.classes):
        regular_files.check_input(opt.classes, " (-classes)")
    if opt.temperature and not opt.scores:
        raise InputError("-temperature is fitted to the scores: give -scores FILE.npy as well")
    opts.check_folder(as_trained(opt))
    _check_outputs(opt)


def _check_outputs(opt):
    """Before the test, refuse files that cannot be written or that the test reads."""
    tables = [("-predictions", opt.predictions), ("-classErrors", opt.classErrors)]
    files = [(option, path, (".csv",)) for option, path in tables if path]
    files += [("-confusion", path, (".csv", ".png", ".svg")) for path in opt.confusion]
    if opt.scores:
        stem, ending = os.path.splitext(opt.scores)
        files.append(("-scores", opt.scores, (".npy", ".csv")))
        if ending.lower() == ".npy":
            files += [("-scores", stem + e, (e[-4:],)) for e in (".images.csv", ".classes.txt")]
    images = []
    if opt.dataset == "imagenet":
        from datasets.imagenet_gen import folder_of, places  # not at the top: it imports NumPy

        images = [os.fsdecode(folder_of(opt, split)) for split in ("train", "val")] + places(opt)
    regular_files.check_outputs(files, [*opt.models, opt.classes, *images])
    for path in opt.confusion:
        if not path.lower().endswith(".csv"):
            pictures.check_drawing(f"-confusion {path}", ", or give -confusion FILE.csv")


if __name__ == "__main__":
    guard(main)
