"""The TensorBoard log (-tensorboard true): the numbers of log.jsonl as an event file.

Each save appends the new lines of the log. A resumed run writes the whole log to a new file that
begins with a purge: TensorBoard then shows no step of earlier files, so none is missing or shown
twice. TensorBoard reads files in the order of their names, which begin with the time. The earlier
files are renamed, because a clock may have been set back.
"""

import contextlib
import os
import threading
import time
from pathlib import Path

from runtime.errors import InputError
from storage import log

SUFFIX = ".main"  # of our event files; those of other programs stay in the folder


class TensorBoardLog:
    """The event file in a run folder."""

    def __init__(self, folder):
        # fail now, not after an epoch
        _summary_writer()
        if os.fsencode(folder).decode(errors="ignore") != folder:
            raise InputError(f"-tensorboard true needs a folder whose name is UTF-8, not {folder}")
        self.folder, self.writer = folder, None
        self.written = 0  # the last epoch

    def write(self, log_file):
        """Append the epochs of log.jsonl that are new."""
        writer, self.writer = self.writer, None  # after an error, the next call begins a new file
        with _no_traceback():
            if writer is None:
                for earlier in Path(self.folder).glob(f"events.*{SUFFIX}"):
                    earlier.rename(earlier.with_name(f"earlier.{earlier.name}"))
                writer = _summary_writer()(self.folder, purge_step=0, filename_suffix=SUFFIX)
                self.written = 0
            # wall times as if each line had been written at the end of its epoch
            seconds = (log.scalars(line).get("seconds", 0) for line in log_file.after(self.written))
            moment, epoch = time.time() - sum(seconds), self.written
            for line in log_file.after(self.written):
                epoch, numbers = line["epoch"], log.scalars(line)
                moment += numbers.get("seconds", 0)
                for name, number in numbers.items():
                    writer.add_scalar(name, number, epoch, moment)
            writer.flush()
        self.writer, self.written = writer, epoch


@contextlib.contextmanager
def _no_traceback():
    """Keep an OSError in the writer's thread off stderr; `flush` raises it in ours as well."""
    hook = threading.excepthook
    threading.excepthook = lambda found: isinstance(found.exc_value, OSError) or hook(found)
    try:
        yield
    finally:
        threading.excepthook = hook


def _summary_writer():
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "-tensorboard true needs a package that is missing: pip install tensorboard"
        ) from None
    return SummaryWriter
