"""-precision: the dtype of weights and images, mixed precision, loss scaling."""

import torch

from runtime.errors import InputError

WEIGHTS = dict.fromkeys(("single", "half", "bfloat16", "tf32"), torch.float32)
WEIGHTS["double"] = torch.float64
MIXED = {"half": torch.float16, "bfloat16": torch.bfloat16}


class Precision:
    """The precision `name`, one of opts.PRECISIONS, on a device.

    dtype: of weights, gradients and images. mixed: the dtype under `autocast`, or None.
    """

    def __init__(self, name, device):
        self.name, self.device = name, torch.device(device)
        if name not in WEIGHTS:
            raise InputError(f"unknown precision {name!r}: should be one of {', '.join(WEIGHTS)}")
        self.dtype = WEIGHTS[name]
        self.mixed = MIXED.get(name)

    def autocast(self):
        """The context for a forward pass and its loss."""
        return torch.autocast(self.device.type, self.mixed, enabled=self.mixed is not None)

    def scaler(self):
        """The loss scaler. It is enabled for `half` only, whose gradients would underflow."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "half")
