"""How numba compiles kernels.py: when it is imported, with a cache."""

import numba


def compiled(signature, **options):
    """numba.njit for one signature, compiled at once, so that forked workers inherit the code."""

    def compile(function):
        try:
            return numba.njit(signature, nogil=True, cache=True, **options)(function)
        except Exception:  # the cache is full, damaged or not writable; other errors come again
            return numba.njit(signature, nogil=True, **options)(function)

    return compile
