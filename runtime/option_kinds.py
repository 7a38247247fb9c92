"""The kinds of an option's value: each reads the word after the option, ValueError if it cannot.

And `value_text`, which writes a value as it would be typed.
"""

import math

LONGEST = 1 << 14  # pixels, the side of an image after scaling
EXACT = 2**53  # a double has every whole number up to here


def whole(text):
    """A whole number, as tonumber read it: 32, 1e2."""
    number = float(text)
    if not number.is_integer() or abs(number) > EXACT:
        raise ValueError
    return int(number)


def real(text):
    """A finite number."""
    number = float(text)
    if not math.isfinite(number):
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


WANTED = {
    whole: "a whole number, at most 2^53",
    real: "a number",
    boolean: "true or false",
    series: "ascending numbers such as 150,225",
}


def value_text(value):
    """An option's value as one would type it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else f"{value}"
