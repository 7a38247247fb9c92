"""The run, in order: options, checkpoint, model, data, trainer, epochs. Port of main.lua."""

import sys

import opts
from parallel import guard, launch
from runtime import memory, process


def main(argv=None):
    """Train or test as the command line says."""
    end = guard.end if argv is None else None  # from Python, the process goes on after the run
    argv = sys.argv[1:] if argv is None else list(argv)
    opt = opts.parse(argv)
    process.spin_briefly()

    count = launch.processes(opt.given.get("nProcs"), replicas(opt))
    if count > 1:
        sys.exit(launch.run("main.py", argv, count, None if opt.testOnly else opt.save))
    run(opt, argv, end)


def replicas(opt):
    """-nGPU, which on a resume is the checkpoint's unless it is given."""
    if opt.resume == "none" or "nGPU" in opt.given or launch.joined():
        return opt.nGPU
    import checkpoints

    found = checkpoints.saved_replicas(opt.resume)
    return found if opts.fits("nGPU", found) else opt.nGPU


def run(start, argv, end):
    """One process's part of the run that `argv` asks for; `end`: see Interrupts.

    start: the options of `argv`, without what a checkpoint or a model file says.
    """
    # not at the top: an error in the options or the help need not wait for torch
    import torch

    import checkpoints
    import dataloader
    import datasets
    import models
    from evaluation.reporter import Reporter
    from parallel import group
    from parallel.signals import Interrupts
    from runtime.progress import Clock
    from runtime.terminal import Terminal, note, say
    from storage.run_folder import RunFolder
    from train import Trainer, criterion

    device = group.join()
    if device.type == "cpu":
        memory.keep_freed()

    # from here on no other run writes to the folder
    with Terminal(start.progress), RunFolder(start.save, not start.testOnly) as folder:
        # Load previous checkpoint, if it exists
        agents = group.agents()
        resume = start.save if checkpoints.restarted(start.save, agents) else start.resume
        checkpoint = checkpoints.latest(resume)
        model = models.from_file(checkpoint, start.retrain)
        given = {**start.given, "resume": resume}
        opt = opts.settle(given, checkpoint, model and model.config)
        opts.check(opt)
        torch.manual_seed(opt.manualSeed)

        # Create model
        classes = datasets.module(opt.dataset).classes(opt)
        model = models.setup(opt, model, checkpoint, classes, device)
        opts.report(opt, model.config)

        # Data loading
        train_loader, val_loader = loaders = dataloader.create(opt, device)
        model.input_spec = val_loader.dataset.input_spec()
        if model.input_spec is None:
            note("=> no input spec describes the test transform: the model files have none")

        # The trainer handles the training loop and evaluation on validation set
        def save_inside(final):
            folder.save_inside(models.pack(model), trainer.state(), final)

        command = opts.resume_command(argv, opt.save)
        save = None if opt.testOnly else save_inside
        interrupts = Interrupts(opt.saveEvery, opt.save, save, command, end)
        reporter = Reporter(Clock(opt.nEpochs, train_loader.size(), val_loader.size()))
        state = checkpoint or checkpoints.optim_state(
            opt.optimState, opt.retrain, opt.resetClassifier
        )
        data = dataloader.fingerprints(loaders)
        trainer = Trainer(model, criterion(), opt, device, state, reporter, interrupts, data)

        if opt.testOnly:
            trainer.recompute(0, train_loader)
            top1, top5 = trainer.test(0, val_loader)
            say(f" * Results top1: {top1:6.3f}  top5: {top5:6.3f}")
            return

        folder.begin(opt, checkpoint, model, device, agents)
        first = checkpoint["epoch"] + 1 if checkpoint else opt.epochNumber
        with interrupts:
            group.barrier()  # from here on every process hears signals
            for epoch in range(first, opt.nEpochs + 1):
                train_epoch(epoch, trainer, loaders, folder)
            folder.wait()  # a signal now comes too late to interrupt anything
        best1, best5 = folder.best
        say(f" * Finished top1: {best1:6.3f}  top5: {best5:6.3f}")


def train_epoch(epoch, trainer, loaders, folder):
    """Train for a single epoch, run the model on the validation set, save."""
    import models
    from runtime.terminal import say
    from storage import log

    train_loader, val_loader = loaders
    trainer.train(epoch, train_loader)
    done = trainer.position.train
    train_loader.report_wait(epoch, done.seconds, done.data_wait)

    folder.save_before_test(models.pack(trainer.model), trainer.state())
    with trainer.interrupts.saving(f"in the test of epoch {epoch}"):
        trainer.recompute(epoch, train_loader)
        test = trainer.test(epoch, val_loader)

    is_best = test[0] < folder.best[0]
    if is_best:
        folder.best = test
        say(f" * Best model \t{test[0]:.14g}\t{test[1]:.14g}")

    position = trainer.position
    images = sum(loader.dataset.size() for loader in loaders)
    sums = position.train, position.test
    entry = log.entry(trainer.rate, *sums, folder.best, trainer.device, images)
    folder.save(epoch, models.pack(trainer.model), trainer.state(), is_best, entry)


if __name__ == "__main__":
    guard.guard(main)
