"""The position inside an epoch that a checkpoint holds, and whether it still holds."""

from runtime.terminal import note


def resumable(state, order, options, data):
    """The position of a state, or None if its epoch is finished or has to begin again.

    order: what the batches of an epoch depend on, and `options`, as messages name where it comes
    from; data: dataloader.fingerprints. A change of either is named in a line. Where the training
    images are the same and all were trained, only the test begins again.
    """
    position, before = state.get("position"), state.get("data", data)
    same_data = before == data
    if not same_data:
        note("=> the images in -data are not those of the checkpoint: the run goes on with them")
    if position is None or position["epoch"] in (None, state.get("epoch")):
        return None  # its epoch is finished, or there is none
    if position["order"] != order or not same_data:
        what = options if same_data else "the images"
        if position.get("trained") is True and before[:1] == data[:1]:
            note(f"=> {what} changed in the test of epoch {position['epoch']}: it begins again")
            return {**position, "order": order, "test": {}}
        note(f"=> {what} changed inside epoch {position['epoch']}: it begins again")
        return None
    return position
