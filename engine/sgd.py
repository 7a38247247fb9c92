"""SGD whose momentum is saved and resumed."""

import torch

from runtime.errors import InputError


def create(groups, **settings):
    """torch.optim.SGD with these parameter groups and settings.

    The momentum begins at 0, in the parameters' memory layout; with dampening 0 the first step is
    the same. Fused SGD itself would begin with uninitialised memory, keep it if the first step with
    -precision half overflows, and assume equal layouts.
    """
    optimizer = torch.optim.SGD(groups, fused=True, **settings)  # one pass over each parameter
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        buffer = torch.zeros_like(parameter, requires_grad=False)
        optimizer.state[parameter]["momentum_buffer"] = buffer
    return optimizer


def momentum(optimizer, parameters):
    """{name: momentum buffer} of the trained {name: parameter}."""
    return {name: optimizer.state[p]["momentum_buffer"] for name, p in parameters.items()}


def load_momentum(optimizer, parameters, state, known, before):
    """Load the momentum of a state; InputError for a buffer that is missing or does not fit.

    parameters: {name: parameter} that are trained. known: {name: parameter} that could be. before:
    names of the parameters that the saved run trained.
    """
    own, file = momentum(optimizer, parameters), state.get("file", "the optimState")
    for name, buffer in state["momentum"].items():
        if name not in known or known[name].shape != buffer.shape:
            raise InputError(f"{file} does not belong to this net: {name} differs")
        if name in own:  # -freeze may have been given since
            own[name].copy_(buffer)
    for name in own:
        if name in before and name not in state["momentum"]:
            raise InputError(f"{file} does not belong to this net: its momentum lacks {name}")
