"""The one exception that is meant for the person at the keyboard."""


class InputError(Exception):
    """Bad input, told in one sentence: what is wrong, where, and what would be right.

    Scripts print it on stderr without a traceback and exit with a non-zero status. Anything else
    that escapes is a programming error and may trace.
    """
