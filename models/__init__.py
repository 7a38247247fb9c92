"""The nets, and the functions that make one from options or load it. Port of models/init.lua.

The functions are in loading.py. They are imported on first use, so that opts.py can read depths.py
without waiting for PyTorch.
"""

import importlib

_LAZY = {
    *("setup", "build", "load", "load_file", "from_config", "from_file", "pack"),
    *("reset_classifier", "set_backend"),
}


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("models.loading"), name)
