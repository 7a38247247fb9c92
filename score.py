"""Outputs and targets to error counts. Port of Trainer:computeScore in train.lua.

Differs from the Lua: counts instead of percentages, so that batches and processes add up exactly,
and top-5 means top-min(5, classes) where the Lua failed below five classes.
"""


def sum_crops(output, crops):
    """(N * crops, K) -> (N, K): the sum of the raw outputs over the crops of an image."""
    return output.view(-1, crops, output.shape[1]).sum(1) if crops > 1 else output


def errors(output, target):
    """How many of the batch are wrong: tensors (top-1, top-5); output (N, K), target (N,) from 0.

    A row with a value that is not a number counts as wrong: no ranking can be read from it.
    """
    best = output.float().topk(min(5, output.shape[1]), dim=1).indices  # (N, 5), descending
    right = best.eq(target.view(-1, 1)) & ~output.isnan().any(dim=1, keepdim=True)
    return (~right[:, 0]).sum(), (~right.any(dim=1)).sum()
