"""Pictures by matplotlib, an optional package, as atomic writes."""

import contextlib
import io
import os
import sys
import warnings

from runtime.errors import InputError, cause
from runtime.terminal import note
from storage import atomic

FORMATS = (".png", ".svg")
# A user's matplotlibrc may ask for LaTeX; a dollar in a name starts no formula
STYLE = {"text.usetex": False, "text.parse_math": False}


def check_drawing(named, instead=""):
    """InputError unless a picture can be drawn. Asked before the work that the picture shows.

    named: its path, after the option that gives it; instead: what else would be right, in words.
    """
    try:
        with _drawn(io.BytesIO(), named, (1, 1)) as figure:
            figure.subplots()
    except ModuleNotFoundError:
        reason = f"which is not installed: pip install matplotlib{instead}"
        raise InputError(f"{named} needs matplotlib, {reason}") from None
    except Exception as error:  # a damaged installation or matplotlibrc can raise anything
        reason = f"which fails here: {cause(error):.200}"
        raise InputError(f"{named} needs matplotlib, {reason}") from None


def _import():
    """matplotlib. MPLBACKEND, set by a notebook, may name a package that this Python lacks."""
    new = "matplotlib" not in sys.modules
    backend = os.environ.pop("MPLBACKEND", None) if new else None
    import matplotlib

    if backend:
        os.environ["MPLBACKEND"] = backend
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    return matplotlib


@contextlib.contextmanager
def drawing(path, size, style=None):
    """A matplotlib Figure, `size` inches wide and high, that becomes the file `path`.

    The picture grows by what is drawn beyond the figure's edges.
    """
    picture = io.BytesIO()
    with (
        warnings.catch_warnings(record=True) as caught,
        _drawn(picture, path, size, style) as figure,
    ):
        yield figure
    for warning in caught[:1]:  # one for each character that the font does not have
        note(f"=> {path}: {warning.message}")
    atomic.write(path, picture.getvalue())


@contextlib.contextmanager
def _drawn(file, path, size, style=None):
    """A Figure that is written to an open file, in the format that the path's ending names."""
    with _import().rc_context(STYLE | (style or {})):
        from matplotlib.figure import Figure  # pyplot would open a window's backend

        figure = Figure(figsize=size, dpi=150)
        yield figure
        ending = os.path.splitext(path)[1]
        figure.savefig(file, format=ending[1:].lower(), bbox_inches="tight")
