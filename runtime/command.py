"""The run of a command of one process: an error becomes one sentence and an exit status.

parallel/guard.py does this for main.py and evaluate.py, which may be several processes.
"""

import os
import sys

from runtime.errors import InputError
from runtime.exit import print_anything
from runtime.memory import lacking
from runtime.packages import missing


def run(main):
    """Call main and exit with its status: 1 after an error, 130 after Ctrl-C.

    If the reader of stdout has gone, as in `| head`, the status is 141, as of SIGPIPE.
    """
    name = os.path.basename(sys.argv[0])
    print_anything()
    try:
        status = main()
        if sys.stdout is not None:
            sys.stdout.flush()
        sys.exit(status)
    except InputError as error:
        sys.exit(f"{name}: {error}")
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
