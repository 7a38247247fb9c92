"""-freeze N: the stem and the first N stages of a net stay as they are while the rest is trained.

Their parameters need no gradient, so autograd keeps none of their activations, and the optimizer
has no state for them. Their batch norms are in evaluation mode: they normalise by the running
statistics of the net that was loaded and do not update them.
"""

from runtime.errors import InputError
from runtime.terminal import note


def freeze(model, count, recomputes=False):
    """Freeze the stem and the first `count` stages; 0 freezes nothing.

    With all stages, the batch norm after the last stage of a pre-activated net is frozen too, so
    that only the classifier is trained. InputError if the net has fewer stages, or if all are
    frozen although batch norms are to be re-estimated (`recomputes`, -recomputeBN).
    """
    if not count:
        return
    stages = getattr(model, "stages", None)
    if stages is None:
        raise InputError(f"-freeze {count}: this net has no stages (a net of models/blocks.py has)")
    if count > len(stages):
        raise InputError(f"-freeze {count}: this net has only {len(stages)} stages")
    if recomputes and count == len(stages):
        raise InputError(f"-recomputeBN: -freeze {count} freezes every batch norm; leave one out")
    model.frozen = held(model, count)
    for name in model.frozen:
        model.get_submodule(name).requires_grad_(False)
    note(f"=> Frozen: {', '.join(model.frozen)}")


def held(model, count):
    """The names of the parts of a net that -freeze `count` freezes."""
    if not count:
        return ()
    stages = model.stages
    names = ["conv1", "bn1", *stages[:count], *(["bn_last"] if count >= len(stages) else [])]
    return tuple(name for name in names if getattr(model, name) is not None)
