"""The run of a command of one process: an error becomes one sentence and an exit status.

parallel/guard.py does this for main.py, evaluate.py and detect.py, which may be several processes.
"""

import contextlib
import os
import sys

from runtime.errors import InputError
from runtime.memory import lacking
from runtime.process import begin
from runtime.terminal import complain

# packages as they are imported; requirements.txt has their names for pip
REQUIRED = ("torch", "torchvision", "numpy", "PIL", "filelock")


def run(main):
    """Call main and exit with its status: 1 after an error, 130 after Ctrl-C.

    If the reader of stdout has gone, as in `| head`, the status is 141, as of SIGPIPE.
    """
    name = os.path.basename(sys.argv[0])
    begin()
    try:
        with one_sentence(name):
            status = main()
        if sys.stdout is not None:
            sys.stdout.flush()
        sys.exit(status)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is buffered still
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        sentence = missing(error) or lacking(error)
        if not sentence:
            raise
        sys.exit(f"{name}: {sentence}")


@contextlib.contextmanager
def one_sentence(name):
    """An InputError inside is one sentence on stderr, and ends the program with status 1.

    name: of the script, before the sentence.
    """
    try:
        yield
    except InputError as error:
        complain(f"{name}: {error}")
        sys.exit(1)


def missing(error):
    """The sentence for an ImportError of a required package, or None for any other error."""
    if not isinstance(error, ModuleNotFoundError) or error.name not in REQUIRED:
        return None
    return (
        f"{error.name} is not installed in this Python: `make demo` installs what is needed into"
        " .venv, and `. .venv/bin/activate` enters it in this shell; or install it by hand,"
        " `pip install -r requirements.txt`"
    )
