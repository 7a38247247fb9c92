"""What every benchmark imports first: the program's folder on the path; errors of a user as lines.

A package that is not installed is named in one sentence.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))


def _report(kind, error, trace):
    """In place of sys.excepthook."""
    if not issubclass(kind, ModuleNotFoundError):
        sys.__excepthook__(kind, error, trace)
        return
    print(
        f"{os.path.basename(sys.argv[0])}: {error.name} is not installed in this Python:"
        " `. .venv/bin/activate` enters the environment of `make demo`, and"
        " `pip install -r benchmarks/requirements.txt` installs what the benchmarks need",
        file=sys.stderr,
    )


sys.excepthook = _report
