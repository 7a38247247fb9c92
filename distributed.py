"""The one place that knows of devices and processes; so far there is one of each."""

import torch


def say(*args):
    """Print on the first rank only, at once: logs are followed through pipes."""
    print(*args, flush=True)


def pick_device():
    """CUDA where there is one, else the CPU, which is said in one line."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    say("=> No CUDA device: running on the CPU")
    return torch.device("cpu")
