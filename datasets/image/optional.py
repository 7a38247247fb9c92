"""Whether the packages that make the input fast can be imported: numba and simplejpeg.

Both are optional at run time, because a new Python or a rare machine may have no wheel of them.
Without numba the plain transforms make the input, without simplejpeg Pillow decodes.
"""

from datasets.image import decoding


def kernels():
    """The module of compiled kernels, or None without numba."""
    try:
        import numba  # noqa: F401
    except (ImportError, OSError):  # OSError: LLVM's library cannot be loaded
        return None
    from datasets.image import kernels

    return kernels


def missing():
    """A line for each package that training on photos lacks, for the user."""
    lines = []
    if kernels() is None:
        lines.append(
            "=> numba cannot be imported: training images take 4 times as long on a core"
            " (pip install numba)"
        )
    if decoding.simplejpeg is None:
        lines.append(
            "=> simplejpeg cannot be imported: Pillow decodes, in 1.5 times the time"
            " (pip install simplejpeg)"
        )
    return lines
