"""The TensorBoard log (-tensorboard true): the numbers of log.jsonl as an event file.

Each save appends the new lines of the log. A resumed run writes a new file from the whole log, so
that no step is missing or there twice. It uses the parts of torch's SummaryWriter instead of the
writer, which reports a full disk by a traceback from a thread of its own.
"""

import contextlib
import io
import os
import socket
import time
import types

from runtime import regular_files
from runtime.errors import InputError
from storage import log

SUFFIX = ".main"  # of our event files: those of other programs in the folder stay


class TensorBoardLog:
    """The event file in a run folder."""

    def __init__(self, folder):
        _tensorboard()  # a missing package is an error now, not after an epoch
        self.folder, self.path, self.written = folder, None, 0
        self.replaced = []  # event files of the run that a new one replaces

    def write(self, lines):
        """Append what is new in the lines of log.jsonl; the first line is its header."""
        if self.path is None:
            self._begin()
        new = [(line, log.scalars(line)) for line in lines[1 + self.written :]]
        # wall times as if each line had been written at the end of its epoch
        moment = time.time() - sum(numbers.get("seconds", 0) for _, numbers in new)
        records = []
        for line, numbers in new:
            moment += numbers.get("seconds", 0)
            records.append(_record(_event(moment, line["epoch"], numbers)))
        path, self.path = self.path, None  # if the disk is full, the next call writes a new file
        with open(path, "ab") as file:
            file.write(b"".join(records))
        self.path = path
        self.written += len(new)

    def _begin(self):
        for path in self.replaced:
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)
        now = time.time()
        name = f"events.out.tfevents.{now:.0f}.{socket.gethostname()}.{os.getpid()}{SUFFIX}"
        path = os.path.join(self.folder, name)
        self.replaced = [path]
        with open(path, "wb") as file:
            event = _tensorboard().event_pb2.Event(wall_time=now, file_version="brain.Event:2")
            file.write(_record(event))
        self.path, self.written = path, 0


def holds_only(path, lines):
    """Whether a file has no other events than those of these lines of the log."""
    known = {_event(0, line["epoch"], log.scalars(line)).SerializeToString() for line in lines[1:]}
    at = 0
    try:
        with regular_files.opened(path) as file:
            content = file.read()
        while at < len(content):  # record: the event's length, a checksum, the event, a checksum
            end = at + 12 + int.from_bytes(content[at : at + 8], "little")
            event = _tensorboard().event_pb2.Event.FromString(content[at + 12 : end])
            event.wall_time = 0
            if not event.file_version and event.SerializeToString() not in known:
                return False
            at = end + 4
    except Exception:  # unreadable, or damaged: protobuf has errors of its own
        return False
    return True


def _event(moment, step, numbers):
    values = [{"tag": name, "simple_value": number} for name, number in numbers.items()]
    return _tensorboard().event_pb2.Event(wall_time=moment, step=step, summary={"value": values})


def _record(event):
    """An event as a record of the file, in bytes."""
    buffer = io.BytesIO()
    _tensorboard().RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()


def _tensorboard():
    """What SummaryWriter uses of tensorboard: the event's protobuf and the writer of records."""
    try:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        raise InputError(
            "-tensorboard true needs a package that is missing: pip install tensorboard"
        ) from None
    return types.SimpleNamespace(event_pb2=event_pb2, RecordWriter=RecordWriter)
