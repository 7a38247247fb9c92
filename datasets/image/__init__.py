"""From an image file to a net's input: decoding, Torch's resize, colour, compiled kernels."""

import functools

from torch.utils import data

from runtime.terminal import note


@functools.cache
def compiled_kernels():
    """The module of compiled kernels; None and a note without numba, which new Pythons may lack."""
    try:
        from datasets.image import kernels
    except (ImportError, OSError):  # OSError: LLVM's library cannot be loaded
        if data.get_worker_info() is None:  # the main process has said so
            note(
                "=> numba cannot be imported, so training images take 4 to 7 times as long on a"
                " core (pip install numba)"
            )
        return None
    return kernels
