"""The options of a command: how words become values, the help, and where each value comes from.

Every command has a table of options. This file imports nothing heavy, so that -help and errors
appear at once. An error in the options is one sentence, and exit status 2.
"""

import contextlib
import difflib
import math
import os
import sys
import time
from collections import ChainMap

from runtime.errors import InputError
from runtime.terminal import complain, is_rank_0

LONGEST = 1 << 14  # pixels, the side of an image after scaling
EXACT = 2**53  # a double, the only number of Lua and of JSON, has every whole number up to here
UNSET = "is a variable of the shell not set?"
HELP = {"-h", "-help", "--help"}
PATIENCE = 30  # seconds for which the other ranks leave an error in the options to the first one


def whole(text):
    """A whole number, as tonumber read it: 32, 1e2."""
    number = real(text)
    if not number.is_integer() or abs(number) > EXACT:
        raise ValueError
    return int(number)


def real(text):
    """A finite number, without the underscores that Python takes: -LRSteps 30_60 is two epochs."""
    number = float(text)
    if not math.isfinite(number) or "_" in text:
        raise ValueError
    return number


def boolean(text):
    """True or False; KeyError for other words."""
    return {"true": True, "false": False}[text.lower()]


def series(text):
    """Whole numbers separated by commas: epochs, or lengths in pixels."""
    steps = tuple(whole(step) for step in text.split(",")) if text else ()
    if any(step < 1 for step in steps) or list(steps) != sorted(set(steps)):
        raise ValueError
    return steps


def part(text):
    """One of two or more equal parts: 3/5."""
    which, parts = map(whole, text.split("/"))
    if not 1 <= which <= parts or parts < 2:
        raise ValueError
    return f"{which}/{parts}"


def flag():
    """The kind of an option without a value: giving it makes it true."""


WANTED = {
    whole: "a whole number, at most 2^53",
    real: "a number",
    boolean: "true or false",
    series: "ascending numbers such as 150,225",
    part: "one of equal parts, such as 3/5",
}


def value_text(value):
    """An option's value as one would type it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else f"{value}"


class Options:
    """The options of a run, as read-only attributes: each from the first layer that has it."""

    def __init__(self, **layers):
        """layers: {name of a layer: {option: value}}, the strongest first; None: no such layer."""
        layers = {name: layer for name, layer in layers.items() if layer is not None}
        vars(self).update(layers=layers, values=ChainMap(*layers.values()))

    def __getattr__(self, name):
        try:
            return vars(self)["values"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name, value):
        raise AttributeError(f"options are read-only: {name}")

    def source(self, name):
        """The name of the layer that an option's value is from."""
        return next(layer for layer, values in self.layers.items() if name in values)

    @property
    def given(self):
        """The options that the command line gives."""
        return self.layers.get("given", {})

    def replaced(self, **changes):
        """The same options with these values."""
        layers = dict(self.layers)
        return Options(changes={**layers.pop("changes", {}), **changes}, **layers)


def defaults(table):
    """{option: default} of a table."""
    return {row[0]: row[1] for row in table}


@contextlib.contextmanager
def parsed(argv, program, head, table, words=None):
    """{option: value} as given in argv. -help, or an InputError in the block, ends the program.

    head: what stands above the table in the help. table: rows of name, default, kind, what the
    value may be (words, the least number, or a range) and help. words: see `read_words`.
    """
    if HELP & set(argv):
        print(help_text(head, table), flush=True)
        sys.exit(0)
    try:
        yield read_words(argv, table, words)
    except InputError as error:
        if is_rank_0("LOCAL_RANK"):  # under torchrun all processes get the same words
            complain(f"{program}: {error}")
        else:
            time.sleep(PATIENCE)  # once one has ended, torchrun kills the rest, even the first
        sys.exit(2)


def read_words(argv, table, others=None):
    """{option: value} as given in argv. Other words are refused, or appended to the list `others`.

    Not by argparse: with single-dash names it takes -dep for -depth even where abbreviations are
    off, and refuses values that start with a dash.
    """
    rows = {row[0]: row for row in table}
    given = {}
    words = iter(argv)
    for word in words:
        if not word:
            raise InputError(f"an argument is empty: {UNSET}")
        if not word.startswith("-"):
            if others is None:
                raise InputError(f"unexpected word {word!r}: options start with a dash (see -help)")
            others.append(word)
            continue
        name, joined, text = word.lstrip("-").partition("=")
        if name not in rows:
            raise InputError(f"unknown option -{name}{_nearest(name, [*rows, 'help'])}")
        _, _, kind, allowed, _ = rows[name]
        if kind is flag:
            given[name] = True
            continue
        if not joined:
            text = next(words, None)
        if text is None or (text.startswith("-") and text.lstrip("-") in rows):
            raise InputError(f"missing argument for option -{name}")
        if kind is str:  # the shell does not expand the ~ in -data=~/photos
            text = os.path.expanduser(text)
        if not text and kind is not series and not isinstance(allowed, tuple):
            raise InputError(f"the value of -{name} is empty: {UNSET}")
        given[name] = _value(name, text, kind, allowed)
    return given


def _nearest(name, names):
    starts = [known for known in sorted(names) if name and known.lower().startswith(name.lower())]
    near = starts or difflib.get_close_matches(name, names, 3, 0.5)
    return "; did you mean -" + " or -".join(near) + "?" if near else " (-help lists all)"


def _value(name, text, kind, allowed):
    try:
        value = kind(text)
    except (ValueError, KeyError, OverflowError):
        raise InputError(
            f"invalid value {text!r} for option -{name}: should be {WANTED[kind]}"
        ) from None
    if isinstance(allowed, tuple) and value not in allowed:
        words = ", ".join(word for word in allowed if word)
        raise InputError(f"unknown {name} {text!r}: should be one of {words}")
    if isinstance(allowed, range) and value not in allowed:
        raise InputError(
            f"invalid value {text} for option -{name}: should be {allowed[0]} to {allowed[-1]}"
        )
    if isinstance(allowed, int) and value < allowed:
        raise InputError(f"invalid value {text} for option -{name}: should be at least {allowed}")
    return value


def fits(name, value, table):
    """Whether an option can have this value from a file: as if it were given in words."""
    default, kind, allowed = next(row[1:4] for row in table if row[0] == name)
    if type(value) is not type(default):
        return False
    try:
        found = _value(name, value_text(value), kind, allowed)
    except InputError:
        return value == default  # the empty -fold has no words
    return repr(found) == repr(value)  # (1.0,) is not (1,)


def help_text(head, table):
    """The table of options in the original's layout."""
    width = max((len(row[0]) for row in table), default=0)
    rows = [head]
    for name, default, kind, allowed, text in table:
        text = text or "Options: " + " | ".join(filter(None, allowed))
        value = "" if kind is flag else f" [{value_text(default)}]"
        rows.append(f"  -{name:<{width}} {text}{value}")
    return "\n".join(rows)
