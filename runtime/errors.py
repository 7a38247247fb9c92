"""The exception for bad input, the only one that is written for the user."""

from runtime.foreign import visible


class InputError(Exception):
    """Bad input. The message is one sentence: what is wrong, where, and what would be right.

    Commands print it on stderr without a traceback and exit with a non-zero status. Any other
    exception that reaches the top is a bug and keeps its traceback. Names in the message may come
    from files: control characters are escaped.
    """

    def __str__(self):
        return visible(super().__str__())
