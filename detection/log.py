"""The line of an epoch of a detector in log.jsonl."""

from storage import log


def entry(trainer, scores, best, images):
    """The line without its number; `scores` are COCO's in per cent, or the proposals' recall.

    images: how many the epoch and its test have.
    """
    train, test = trainer.position.train, trainer.position.test
    return {
        "step": trainer.step.name,
        "rate": trainer.rate,  # of the last iteration
        "train": {"loss": train.mean_loss, **train.losses},
        "test": scores,
        "best": {name: 100 - error for name, error in zip(("AP", "AP50"), best) if error <= 100},
        **log.work(train, test, trainer.device, images),
    }
