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
        matplotlib = _import()
        with matplotlib.rc_context(STYLE):
            figure = _figure((1, 1))
            figure.subplots()
            _picture(figure, named)
    except ModuleNotFoundError:
        reason = f"which is not installed: pip install matplotlib{instead}"
        raise InputError(f"{named} needs matplotlib, {reason}") from None
    except Exception as error:  # a damaged installation or matplotlibrc can raise anything
        reason = f"which fails here: {cause(error):.200}"
        raise InputError(f"{named} needs matplotlib, {reason}") from None


def _import():
    """matplotlib, though MPLBACKEND may be of a notebook and name a package that we do not have."""
    new = "matplotlib" not in sys.modules
    backend = os.environ.pop("MPLBACKEND", None) if new else None
    import matplotlib

    if backend:
        os.environ["MPLBACKEND"] = backend
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    return matplotlib


@contextlib.contextmanager
def drawing(path, size, style=()):
    """A matplotlib Figure, `size` inches wide and high, that becomes the file `path`.

    The picture grows by what is drawn beyond the figure's edges.
    """
    settings = _import().rc_context({**STYLE, **dict(style)})
    with settings, warnings.catch_warnings(record=True) as caught:
        figure = _figure(size)
        yield figure
        picture = _picture(figure, path)
    for warning in caught[:1]:  # one for each character that the font does not have
        note(f"=> {path}: {warning.message}")
    atomic.write(path, picture)


def _figure(size):
    from matplotlib.figure import Figure  # pyplot would open a window's backend

    return Figure(figsize=size, dpi=150)


def _picture(figure, path):
    """The bytes of the picture, in the format that the path's ending names."""
    buffer, ending = io.BytesIO(), os.path.splitext(path)[1]
    figure.savefig(buffer, format=ending[1:].lower(), bbox_inches="tight")
    return buffer.getvalue()
