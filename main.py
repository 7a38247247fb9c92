"""The run, in order: options, checkpoint, model, data, trainer, epochs. Port of main.lua."""

import contextlib
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # for python -P and -I

import datasets
import models
import opts
from parallel import guard, launch
from parallel.signals import Interrupts
from runtime import process
from runtime.errors import InputError
from runtime.progress import Clock
from runtime.terminal import Terminal, note, say

FEW = 500  # training images per class, as many as CIFAR-100 has


def main(argv=None):
    """Train or test as the command line says."""
    end = guard.end if argv is None else None  # a caller in Python goes on after the run
    argv = sys.argv[1:] if argv is None else list(argv)
    opt = opts.parse(argv)
    process.spin_briefly()

    count = launch.processes(opt.given.get("nProcs"), replicas(opt))
    if count > 1:
        sys.exit(launch.run("main.py", argv, count, None if opt.testOnly else opt.save))
    run(opt, argv, end)


def replicas(opt):
    """-nGPU as given or, on a resume, as in the checkpoint."""
    if opt.resume == "none" or "nGPU" in opt.given or launch.joined():
        return opt.nGPU
    import checkpoints

    found = checkpoints.pointer_field(opt.resume, "nGPU")
    return found if opts.fits("nGPU", found) else opt.nGPU


def run(start, argv, end):
    """One process's part of the run that `argv` asks for.

    start: the options of `argv`, before a checkpoint or a model file adds its own. end: see
    Interrupts.
    """
    # imported here, so that -help and option errors do not wait for torch
    import torch

    import dataloader
    import train
    from engine.metrics import Reporter
    from evaluation.scores import window_of_tests
    from storage import log

    with opened(start) as (folder, checkpoint, given, device):
        # Options: as given, from the checkpoint, from the net in a file
        model = models.from_file(checkpoint, start.retrain, not start.resetClassifier)
        opt = opts.settle(given, checkpoint, model and model.config, model and model.input_spec)
        opts.check(opt)
        torch.manual_seed(opt.manualSeed)

        # Create model
        classes = datasets.module(opt.dataset).classes(opt)
        model = models.setup(opt, model, checkpoint, classes, device)
        opts.report(opt, model.config)
        if device.type == "cuda":
            opts.report_cuda(opt, trains=not opt.testOnly)

        # Data loading
        train_loader, val_loader, *test_loader = loaders = dataloader.create(opt, device)
        report_few(opt, train_loader.dataset.size(), classes)
        model.input_spec = val_loader.dataset.input_spec()
        if model.input_spec is None:
            why = "none describes this test transform"
            note(f"=> the model files have no input spec, because {why}")

        # The trainer handles the training loop and evaluation on validation set
        clock = Clock(opt.nEpochs, train_loader.size(), val_loader.size())
        command = opts.resume_command(argv, opt.save)
        outside = {
            "data": dataloader.fingerprints(loaders),
            "reporter": Reporter(clock, opt.printEvery),
            "interrupts": Interrupts(opt.saveEvery, opt.save, command, end),
        }
        trainer = train.setup(opt, model, device, **outside)
        resume(trainer, checkpoint, opt)

        if model.input_spec and model.input_spec["crop"] > opt.trainCrop:
            model.input_spec |= {"trained": opt.trainCrop, "pool": opt.testPool}
        window = window_of_tests(model)

        def test(epoch):
            trainer.recompute(epoch, train_loader, opt.recomputeBN)
            return trainer.test(epoch, val_loader, window).scores()

        if opt.testOnly:
            scores = test(0)
            say(f" * Results top1: {scores['top1']:6.3f}  top5: {scores['top5']:6.3f}")
            return

        def line(epoch, scores):
            images = train_loader.dataset.size() + val_loader.dataset.size()
            best = dict(zip(scores, folder.best))
            return log.entry(trainer, scores, best, images)

        folder.begin(opt, checkpoint, model, device)
        first = opt.epochNumber
        if checkpoint:
            first = checkpoint["epoch"] + 1
            train.note_rise(opt, first, checkpoint.get("log", []))
        epochs = range(first, opt.nEpochs + 1)
        train_epochs(epochs, trainer, lambda epoch: train_loader, test, line, folder)
        best1, best5 = folder.best
        say(f" * Finished top1: {best1:6.3f}  top5: {best5:6.3f}")
        for loader in test_loader:
            test_best(trainer, loader, window, folder)


def report_few(opt, images, classes):
    """Say where to read on if a new net is to be trained on few photos of full size."""
    full = opt.dataset == "imagenet" and opt.source("trainCrop") == "default"
    if full and opt.retrain == "none" and not opt.testOnly and images < FEW * len(classes):
        note(f"=> {images} photos are few for training a new net: see Few photos in README.md")


def test_best(trainer, loader, window, folder):
    """Test the best model on the test images, which had no part in its choice; print and log it."""
    from parallel import group

    if folder.best[0] > 100:  # no epoch had an error that is a number
        return
    model = trainer.model
    if group.rank() == 0:
        model.load_state_dict(models.load_file(folder.best_model()).state_dict())
    group.broadcast([*model.parameters(), *model.buffers()])
    note(f"=> testing the best model on the {loader.dataset.size()} test images")
    found = trainer.test(0, loader, window)
    folder.log_test({"top1": found.top1, "top5": found.top5, "images": found.seen})
    say(f" * Results top1: {found.top1:6.3f}  top5: {found.top5:6.3f}")


def resume(trainer, checkpoint, opt):
    """Load the checkpoint's state into the trainer, or that of -optimState."""
    import checkpoints

    saved = opt.layers.get("checkpoint", {})
    if datasets.holds_out(opt) or saved.get("valShare") or saved.get("fold"):
        before = checkpoint.get("data") if checkpoint else None
        if before and before[:2] != trainer.data[:2]:
            raise InputError(
                "the images, -valShare, -fold or -manualSeed differ from the checkpoint, so val "
                "would have images that the model was trained on; start a new run instead"
            )
    new = ("fc",) if opt.resetClassifier else ()
    state = checkpoint or checkpoints.optim_state(opt.optimState, opt.retrain, new)
    if state:
        trainer.load_state(state, new, inside=not opt.testOnly)


@contextlib.contextmanager
def opened(start):
    """Open a run, a detector's too: (its folder, checkpoint, given options, device).

    Until the context ends, no other run writes to the folder.
    """
    import checkpoints
    from parallel import group
    from storage.run_folder import RunFolder

    device = group.join()
    with Terminal(start.progress), RunFolder(start.save, not start.testOnly) as folder:
        folder_to_resume = start.save if checkpoints.restarted(start.save) else start.resume
        checkpoint = checkpoints.latest(folder_to_resume)
        yield folder, checkpoint, {**start.given, "resume": folder_to_resume}, device


def train_epochs(epochs, trainer, loader, test, line, folder):
    """Train, test and save, epoch by epoch. Whatever interrupts this, the training is saved.

    loader(epoch): the epoch's batches. test(epoch): its scores; the first two rank the models.
    line(epoch, scores): its line in the log.
    """
    from parallel import group

    model, interrupts = trainer.model, trainer.interrupts
    interrupts.save = lambda final: folder.save_inside(models.pack(model), trainer.state(), final)
    if not epochs:
        done = f"epoch {epochs.start - 1} is done, and epoch {epochs.stop - 1} is the last one"
        note(f"=> {done}: nothing is left to train")
    with interrupts:
        group.barrier()  # from here on every process handles signals
        for epoch in epochs:
            # Train for a single epoch
            batches = loader(epoch)
            done = trainer.train(epoch, batches)
            batches.report_wait(epoch, done.seconds, done.data_wait)

            # Run model on validation set
            folder.save_before_test(models.pack(model), trainer.state())
            with interrupts.saving(f"in the test of epoch {epoch}"):
                scores = test(epoch)
            errors = trainer.errors(scores)
            is_best = errors is not None and errors[0] < folder.best[0]
            if is_best:
                folder.best = errors
                first, second, *_ = scores.values()
                say(f" * Best model \t{first:.14g}\t{second:.14g}")

            entry = line(epoch, scores)
            folder.save(epoch, models.pack(model), trainer.state(), is_best, entry)
        folder.wait()  # a signal that comes now is too late to interrupt anything


if __name__ == "__main__":
    guard.guard(main)
