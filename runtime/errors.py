"""The exception for bad input, and how messages show names and values from files."""

import re
import reprlib

# Control characters, line and paragraph separators, marks that change the direction of text, and
# surrogates, except those that stand for bytes of a file name, which streams handle
_HIDDEN = re.compile(
    "[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udc7f\udd00-\udfff]"
)
MOST = 2000  # characters of a message, because a name in it may have any length


class InputError(Exception):
    """Bad input. The message is one sentence: what is wrong, where, and what would be right.

    Commands print it on stderr without a traceback and exit with a non-zero status. Any other
    exception that reaches the top is a bug and keeps its traceback. Control characters in the
    message, which may hold names from files, are escaped.
    """

    def __str__(self):
        text = visible(super().__str__())
        return text if len(text) <= MOST else f"{text[: MOST // 2]} … {text[-MOST // 2 :]}"


def cause(error):
    """The first line of an exception's text, without the number and the path of an OSError."""
    inner = getattr(error, "reason", None)  # of a URLError
    error = inner if isinstance(inner, OSError) else error
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def named(error, name):
    """The error with the name of its image or file in the message."""
    return error if str(name) in str(error) else InputError(f"{name!r}: {error}")


class _Short(reprlib.Repr):
    """Shows a few values of a container, and only the type of objects whose repr may be long."""

    def repr_instance(self, value, level):
        simple = value is None or isinstance(value, (bool, float))
        return repr(value) if simple else f"<{type(value).__name__}>"


_SHORT = _Short()
_SHORT.maxlevel = 2  # the number of values grows exponentially with this
_SHORT.maxstring = 80


def visible(text, keep=""):
    """The text with control characters escaped as in repr, except those in `keep`."""

    def escape(found):
        character = found[0]
        return character if character in keep else character.encode("unicode_escape").decode()

    return _HIDDEN.sub(escape, text)


def cut(text, most):
    """The text for a picture or a table: `visible`, cut to `most`, undecodable bytes escaped."""
    text = visible(text[: most + 1])
    text = text if len(text) <= most else text[: most - 1] + "…"
    return text.encode(errors="backslashreplace").decode()


def shown(value):
    """A value for a message: its repr, cut short, in a time that does not depend on its size."""
    return _SHORT.repr(value)[:80]
