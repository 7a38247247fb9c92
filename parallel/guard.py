"""How a process ends: what goes wrong in `main` becomes one sentence on stderr and a status."""

import os
import signal
import sys
import time
import traceback

from parallel import launch
from parallel.signals import Interrupted
from runtime.errors import InputError
from runtime.exit import leave, program


def guard(main):
    """Run main to the end of this process."""
    attend_parent()
    status, words = 0, None
    try:
        main()
    except Interrupted as interrupt:
        from parallel import group

        group.barrier()  # rank 0 may still be writing, and whoever watches ends stragglers
        status, words = interrupt.status, f"{program()}: {interrupt}"
    except KeyboardInterrupt:
        status, words = 130, launch.interrupted()
    except Exception as error:
        fail(error)
    if words and os.environ.get("RANK", "0") == "0":
        print(words, file=sys.stderr)
    leave(status)


def attend_parent():
    """In a process that main.py or torchrun started: end with the parent, let it speak."""
    if launch.PARENT in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        launch.die_with_parent()
    if launch.PARENT in os.environ:
        if os.getppid() != int(os.environ[launch.PARENT]):
            os._exit(1)  # it ended before this could be arranged
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def fail(error):
    """End this process for an error; of several processes only the first to fail speaks."""
    words, first = str(error), True
    if not isinstance(error, InputError):
        words = "".join(traceback.format_exception(error)).rstrip()
    if launch.joined():
        from parallel import group

        if group.lost_peer(error):
            time.sleep(3)  # for who failed to say so, and for parent or agent to end this process
            reason = str(error).splitlines()[0]
            words = f"rank {group.rank()} lost the other processes: {reason}"
        first = group.first_to_fail()
    if first:
        print(f"{program()}: {words}", file=sys.stderr, flush=True)
    leave(1)
