"""The run of a command of one process: an error becomes one sentence and an exit status.

parallel/guard.py does this for main.py and evaluate.py, which may be several processes.
"""

import os
import sys

from runtime.errors import InputError
from runtime.packages import missing


def run(main):
    """Call main and exit with its status: 1 after an error, 130 after Ctrl-C."""
    name = os.path.basename(sys.argv[0])
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"{name}: {error}")
    except ImportError as error:
        if not missing(error):
            raise
        sys.exit(f"{name}: {missing(error)}")
    except KeyboardInterrupt:
        sys.exit(130)
