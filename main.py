"""The run, in order: options, checkpoint, model, data, trainer, epochs. Port of main.lua."""

import math
import sys
from functools import partial

import heap
import launch
import opts
import waiting
from interrupts import Interrupts


def main(argv=None):
    """Train or test as the command line says."""
    program = argv is None
    argv = sys.argv[1:] if program else list(argv)
    opt = opts.parse(argv)
    waiting.briefly()

    count = launch.processes(opt)
    if count > 1:
        sys.exit(launch.run(argv, count))

    # after the options: an error or the help need not wait for torch
    import torch

    import checkpoints
    import dataloader
    import datasets
    import distributed
    import log
    import models
    from distributed import say
    from folder import Folder
    from progress import Clock, Terminal
    from train import Trainer, criterion

    device = distributed.join()
    if device.type == "cpu":
        heap.keep()
    torch.manual_seed(opt.manualSeed)

    with Terminal(opt.progress), Folder(opt) as folder:  # no other run writes to -save from here on
        # Load previous checkpoint, if it exists
        checkpoint = checkpoints.latest(opt)

        # Create model
        model = models.setup(opt, checkpoint, datasets.module(opt.dataset).classes(opt), device)

        # Data loading
        train_loader, val_loader = dataloader.create(opt, device)
        model.preprocessing = val_loader.dataset.preprocessing()

        # The trainer handles the training loop and evaluation on validation set
        state = checkpoint or checkpoints.optim_state(opt)
        trainer = Trainer(model, criterion(), opt, device, state)
        trainer.clock = Clock(opt.nEpochs, train_loader.size(), val_loader.size())

        if opt.testOnly:
            trainer.recompute(0, train_loader)
            top1, top5 = trainer.test(0, val_loader)
            say(f" * Results top1: {top1:6.3f}  top5: {top5:6.3f}")
            return

        folder.begin(checkpoint, model, device)
        first = checkpoint["epoch"] + 1 if checkpoint else opt.epochNumber
        best = checkpoint["best"] if checkpoint else (math.inf, math.inf)
        with Interrupts(opt.saveEvery, opt.save, program) as trainer.interrupts:
            distributed.wait()  # from here on every process hears signals
            for epoch in range(first, opt.nEpochs + 1):
                trainer.interrupts.save = partial(folder.save_inside, epoch, model, trainer, best)
                # Train for a single epoch
                train = trainer.train(epoch, train_loader)

                # Run model on validation set
                trainer.recompute(epoch, train_loader)
                test = trainer.test(epoch, val_loader)

                is_best = test[0] < best[0]
                if is_best:
                    best = test
                    say(f" * Best model \t{best[0]:.14g}\t{best[1]:.14g}")

                entry = log.entry(trainer, train, test, best)
                folder.save(epoch, model, trainer, best, is_best, entry)
            folder.wait()  # a signal now comes too late to stop anything

        say(f" * Finished top1: {best[0]:6.3f}  top5: {best[1]:6.3f}")


if __name__ == "__main__":
    launch.guard(main)
