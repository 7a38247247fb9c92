"""Whether a tensor from a file is plain numbers: dense, on the CPU, whole and finite."""

import torch


def fault(tensor):
    """What keeps a tensor from being the weights or the momentum of a net: a phrase, or None."""
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        return "is no tensor of weights"
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        return "is no tensor of weights: it is not dense, or not in memory"
    if tensor.untyped_storage().nbytes() < tensor.nbytes:
        return "is no tensor of weights: it is an expanded view of fewer numbers"
    if tensor.numel() and not all(map(torch.isfinite, tensor.aminmax())):
        return "has a value that is not finite: the training it is from has diverged"
    return None
