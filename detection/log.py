"""The line of an epoch of a detector in log.jsonl."""

from detection.net import LOSSES
from storage import log


def entry(trainer, scores, best):
    """The line without its number; `scores` are COCO's in per cent, or the proposals' recall."""
    train, test = trainer.position.train, trainer.position.test
    losses = {name: getattr(train, name) / train.seen for name in LOSSES if getattr(train, name)}
    return {
        "step": trainer.step.name,
        "rate": trainer.rate,  # of the last iteration
        "train": {"loss": train.mean_loss, **losses},
        "test": scores,
        "best": {name: 100 - error for name, error in zip(("AP", "AP50"), best) if error <= 100},
        **log.times(train, test, trainer.device),
    }
