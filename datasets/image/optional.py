"""Whether the packages that make the input fast can be imported: numba and simplejpeg.

Both are optional at run time, because a new Python or a rare machine may lack a wheel. Without
numba the plain transforms run. Without simplejpeg Pillow decodes, and libjpeg's warnings about
damage are lost.
"""

try:
    import simplejpeg
except ImportError:
    simplejpeg = None


def has_numba():
    """Whether numba can be imported."""
    try:
        import numba  # noqa: F401
    except (ImportError, OSError):  # OSError: LLVM's library cannot be loaded
        return False
    return True


def kernels():
    """The module of compiled kernels, or None without numba."""
    if not has_numba():
        return None
    from datasets.image import kernels

    return kernels


def missing():
    """A line for each package that training on photos lacks, for the user."""
    lines = []
    if not has_numba():
        lines.append(
            "=> numba cannot be imported, so training images take 4 times as long on a core"
            " (pip install numba)"
        )
    if simplejpeg is None:
        lines.append(
            "=> simplejpeg cannot be imported, so Pillow decodes and takes 1.5 times as long"
            " (pip install simplejpeg)"
        )
    return lines
