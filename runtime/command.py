"""Runs a command of one process: an error becomes one sentence and an exit status.

parallel/guard.py does this for main.py, evaluate.py and detect.py, which may be several processes.
"""

import os
import sys

from runtime.errors import InputError
from runtime.memory import lacking
from runtime.process import begin, spin_briefly
from runtime.terminal import Terminal, complain

# Names to import; requirements.txt has the names for pip
REQUIRED = ("torch", "torchvision", "numpy", "PIL", "filelock")


def run(main):
    """Call main and exit with its status: 1 after an error, 130 after Ctrl-C.

    If the reader of stdout has gone, as in `| head`, the status is 141, which is that of SIGPIPE.
    """
    name = os.path.basename(sys.argv[0])
    begin()
    spin_briefly()
    try:
        with Terminal(strict=True):
            status = main()
            sys.stdout.flush()
        sys.exit(status)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # discards what is buffered
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        known = sentence(error)
        if known is None:
            raise
        complain(f"{name}: {known}")
        sys.exit(1)


def sentence(error):
    """The sentence for an error that is not a bug of the program, or None for a bug."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name in REQUIRED:
        return (
            f"{error.name} is not installed in this Python: `make demo` installs what is needed"
            " into .venv, and `. .venv/bin/activate` enters it in this shell; or install it by"
            " hand, `pip install -r requirements.txt`"
        )
    return lacking(error)
