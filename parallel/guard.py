"""Exit of a process: an error in `main` becomes one sentence on stderr and an exit status."""

import os
import signal
import socket
import sys
import time
import traceback

from parallel import launch
from parallel.signals import Interrupted
from runtime.command import sentence
from runtime.errors import InputError
from runtime.process import begin, in_notebook, leave, script
from runtime.terminal import complain, is_rank_0


def guard(main):
    """Call main, then exit with its status. Under %run of a notebook the process goes on."""
    begin()
    if in_notebook():
        try:
            main(sys.argv[1:])
        except (InputError, Interrupted) as error:
            complain(f"{script()}: {error}")
        return
    if launch.PARENT in os.environ:  # main.py started this process and handles Ctrl-C
        launch.die_with_parent(os.environ[launch.PARENT])
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        launch.die_with_parent(os.getppid())  # torchrun does not pass on its process id
    try:
        launch.check_environment()
        main()
    except (Exception, KeyboardInterrupt) as error:
        end(error)
    leave(0)


def end(error):
    """Exit with the sentence and the status of an error or an interrupt."""
    prints = is_rank_0()
    if isinstance(error, Interrupted):
        from parallel import group

        group.barrier()  # rank 0 may still write, and the parent kills the rest once one has ended
        status, message = error.status, str(error)
    elif isinstance(error, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # GNU timeout sends two at once
        status, message = 130, "interrupted"
    elif isinstance(error, BrokenPipeError):  # before or after the run, as in `-help | head`
        leave(141)  # as of SIGPIPE
    else:
        status = 1
        message, prints = _failure(error)
    if prints:
        complain(f"{script()}: {message}")
    leave(status)


def _failure(error):
    """(what to say, whether this process says it: of several, only the first that failed)."""
    known = sentence(error)
    message = known or "".join(traceback.format_exception(error)).rstrip()
    if not launch.joined() or "torch" not in sys.modules:  # without torch, group has no import
        return message, True
    from parallel import group

    if known is None and group.lost_peer(error):
        time.sleep(3)  # the failed process is the first to say so
        who = f"rank {group.rank()} on {socket.gethostname()}"
        message = f"{who} lost the other processes: {group.reason(error)}"
    first = group.first_to_fail()
    if not first:
        time.sleep(3)  # the first one prints before parent or agent kills the rest
    return message, first
