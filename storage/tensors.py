"""Tensors from a file: whether they are plain floats, each in memory of its own."""

import torch

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def fault(tensor):
    """Why a tensor cannot be weights or momentum of a net, as a phrase; None if it can."""
    if not isinstance(tensor, torch.Tensor):
        return "is not a tensor of weights"
    is_dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    # an expanded view has more numbers than its memory
    is_dense = is_dense and tensor.untyped_storage().nbytes() >= tensor.nbytes
    if not is_dense or tensor.dtype not in _DTYPES:
        wanted = "of weights, dense and in memory of its own, of 16, 32 or 64-bit floats"
        return f"is not a tensor {wanted}: it is of {tensor.dtype}"
    if tensor.numel() and not all(map(torch.isfinite, tensor.aminmax())):
        return "has a value that is not finite: that training diverged"
    return None


def separate(state):
    """The tensors of a state dict; those that share memory are copied.

    Training writes to parameters in place; with shared memory this would change others as well.
    """
    seen, found = set(), {}
    for name, tensor in state.items():
        memory = tensor.untyped_storage()
        alone = memory.nbytes() == tensor.nbytes and memory.data_ptr() not in seen
        seen.add(memory.data_ptr())
        found[name] = tensor if alone else tensor.clone()
    return found
