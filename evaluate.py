"""Tests trained models: larger images, ten crops, dense at several scales, ensembles.

The tests of the paper's Tables 5 and 6, for model files of any kind. Every image counts once, for
any number of processes.
"""

import functools
import importlib.util
import os
import sys

import opts
from parallel import launch
from parallel.guard import guard
from runtime import memory, output_files, regular_files, threads
from runtime.errors import InputError
from runtime.option_kinds import LONGEST

HEAD = """Usage: evaluate.py MODEL... [options]

Tests models on the validation images of a dataset. MODEL is a file (.pth, .t7, .safetensors),
torchvision:NAME, or the folder of a run, whose model_best.pth is taken. Several are an ensemble.

Where an image has several outputs (crops, positions, mirror images, scales, models), there are two
results: by the mean of the outputs and by the mean of their softmax. Scales and models have equal
weights.

Options:"""

# options that mean what they mean in opts.py
_SHARED = (
    *("data", "dataset", "nProcs", "cudnn", "gen", "precision"),
    *("nThreads", "skipCorrupt", "batchSize", "tenCrop", "progress"),
)
LENGTHS = range(LONGEST + 1)
# fmt: off
OPTIONS = (
    *(row for row in opts.OPTIONS if row[0] in _SHARED),
    ("testScale",   0,     opts.whole,   LENGTHS, "Shorter side of the test image (0: as the model says)"),
    ("testCrop",    0,     opts.whole,   LENGTHS, "Side of the crop of the test image (0: as the model says)"),
    ("dense",       (),    opts.series,  None, "Test whole images at these scales: 224,256,288,320,352"),
    ("flip",        False, opts.boolean, None, "Test the mirror images as well"),
    ("classes",     "",    str,          None, "File with names of classes, one a line: test among these"),
    ("recomputeBN", 0,     opts.whole,   0,    "Batches to re-estimate batch norm over first (0: no)"),
    ("predictions", "",    str,          None, "Write each image's five best classes: FILE.csv"),
    ("classErrors", "",    str,          None, "Write the errors by class: FILE.csv"),
    ("confusion",   "",    str,          None, "Write the confusion matrix: FILE.csv, .png, .svg, or several: a.csv,a.png"),
)
# fmt: on


def main(argv=None):
    """Test what the command line asks for; returns the errors of ensemble.test."""
    argv = sys.argv[1:] if argv is None else list(argv)
    opt = parse(argv)
    threads.spin_briefly()
    count = launch.available(opt)
    if count > 1:
        sys.exit(launch.run("evaluate.py", argv, count))

    # after the options: -help and option errors do not wait for torch
    import dataloader
    import datasets
    import models
    from evaluation import classes, ensemble, predictions
    from evaluation.views import Views
    from models.fold import folded
    from parallel import group
    from runtime.precision import Precision
    from runtime.terminal import Terminal

    device = group.join()
    if device.type == "cpu":
        memory.keep_freed()
    models.set_backend(opt, one_size=not opt.dense)
    precision = Precision(opt.precision, device)
    nets = [ensemble.load(source, precision) for source in opt.models]

    train, val = group.rank_0_first(lambda: datasets.create(opt))
    data = list(datasets.module(opt.dataset).classes(opt))
    names = [classes.outputs(source, net, data) for source, net in zip(opt.models, nets)]
    listed = opt.classes or None
    tested = classes.read(listed) if listed else names[0]
    if len(nets) > 1:  # without the outputs that -nClasses adds
        tested = [name for name in tested if name is not None]
    columns = [classes.columns(s, n, tested, listed) for s, n in zip(opt.models, names)]
    indices, targets = classes.targets(val, data, tested, listed)

    if opt.recomputeBN:
        loader = dataloader.DataLoader(train, opt, "train", device)
        ensemble.recompute(nets, loader, opt, precision)
    views = [ensemble.views(net, val, opt) for net in nets]
    images = Views(val, indices, targets, list(dict.fromkeys(sum(views, []))))
    opt.batchSize = max(1, opt.batchSize // images.crops())
    loader = dataloader.DataLoader(images, opt, "val", device)
    members = [
        ensemble.Member(
            folded(net, precision.mixed),
            images.view_indices(own),
            outputs.to(device),
            ensemble.window(net, val, opt),
        )
        for net, own, outputs in zip(nets, views, columns)
    ]
    wanted = opt.predictions or opt.classErrors or opt.confusion
    found = predictions.Predictions() if wanted else None
    with Terminal(opt.progress):
        results = ensemble.test(members, loader, opt, precision, found)
    if wanted:
        predictions.write(found, images, tested, opt)
    return results


def parse(argv):
    """The options, with the models in `opt.models`; exits after -help or an error in the options."""
    words = []
    check = functools.partial(_check, words)
    return opts.command_line(argv, "evaluate.py", HEAD, OPTIONS, check, words)


def _check(words, opt):
    if not words:
        raise InputError("give a model: evaluate.py MODEL... [options] (-help says more)")
    opt.models = [_model(word) for word in words]
    # scale, crop and ten are of the test; datasets and loader keep the values of training
    opt.scale, opt.crop, opt.ten = opt.testScale, opt.testCrop, opt.tenCrop
    opt.testScale, opt.testCrop, opt.tenCrop = 256, 224, False
    opt.nGPU, opt.manualSeed, opt.backend, opt.testOnly = 1, 0, "cudnn", True
    opts.check_dataset(opt)
    if opt.dense and (opt.ten or opt.scale or opt.crop):
        raise InputError("-dense tests whole images: leave out -tenCrop, -testScale and -testCrop")
    if opt.dense and opt.dense[-1] not in LENGTHS:  # the scales ascend
        raise InputError(f"-dense {opt.dense[-1]}: scales should be at most {LENGTHS[-1]}")
    if opt.ten and opt.flip:
        raise InputError("-tenCrop true has mirror images already: leave out -flip")
    if opt.recomputeBN and opt.batchSize < 2:
        raise InputError("-recomputeBN needs a -batchSize of at least two images")
    if opt.classes:
        regular_files.check(opt.classes, " (-classes)")
    opts.check_folder(opt)
    _check_outputs(opt)
    return opt


def _check_outputs(opt):
    """Refuse files that cannot be written, before the test."""
    opt.confusion = tuple(opt.confusion.split(",")) if opt.confusion else ()
    files = [("predictions", opt.predictions), ("classErrors", opt.classErrors)]
    files = [(option, path) for option, path in files if path]
    for option, path in files:
        output_files.check(path, (".csv",), option)
    for path in opt.confusion:
        output_files.check(path, (".csv", ".png", ".svg"), "confusion")
    pictures = [path for path in opt.confusion if not path.lower().endswith(".csv")]
    if pictures and importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            f"{pictures[0]} (-confusion) needs matplotlib, which is not installed: "
            "pip install matplotlib, or give -confusion FILE.csv"
        )
    paths = [os.path.realpath(path) for path in [*(path for _, path in files), *opt.confusion]]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice:
        raise InputError(f"{twice} is to be written twice: give each option a file of its own")


def _model(word):
    """The model that an argument names."""
    path = regular_files.model_file(word)
    if not word.startswith("torchvision:"):
        regular_files.check(path)
    return path


if __name__ == "__main__":
    guard(main)
