"""-tensorboard true: the numbers of log.jsonl once more, as a file of events for TensorBoard.

No Lua file. It is written at the end of an epoch from the log's lines; a resumed run makes it anew
from them, so that no step is there twice and none is missing. By the parts that torch's writer is
made of, and not by it, because it tells of a full disk with a traceback from a thread of its own.
"""

import glob
import io
import os
import socket
import time
import types

from runtime.errors import InputError
from storage import log

SUFFIX = ".main"  # of our files: others that lie in the folder stay


class Events:
    """The file of events in a folder, kept up with the lines of the log."""

    def __init__(self, folder):
        library()  # better now than after an epoch
        self.folder, self.path, self.written = folder, None, 0

    def write(self, lines):
        """What is new in the log's lines, the first of which is not an epoch's."""
        if self.path is None:
            self._begin()
        new = [(line, log.scalars(line)) for line in lines[1 + self.written :]]
        # as if each had been written when its epoch ended
        moment = time.time() - sum(numbers.get("seconds", 0) for _, numbers in new)
        records = []
        for line, numbers in new:
            moment += numbers.get("seconds", 0)
            records.append(_record(_event(moment, line["epoch"], numbers)))
        path, self.path = self.path, None  # should the disk be full: all of it anew next time
        with open(path, "ab") as file:
            file.write(b"".join(records))
        self.path = path
        self.written += len(new)

    def _begin(self):
        pattern = os.path.join(glob.escape(self.folder), f"events.out.tfevents.*{SUFFIX}")
        for path in glob.glob(pattern):
            os.remove(path)
        now = time.time()
        name = f"events.out.tfevents.{now:.0f}.{socket.gethostname()}.{os.getpid()}{SUFFIX}"
        path = os.path.join(self.folder, name)
        with open(path, "wb") as file:
            event = library().event_pb2.Event(wall_time=now, file_version="brain.Event:2")
            file.write(_record(event))
        self.path, self.written = path, 0


def _event(moment, step, numbers):
    values = [{"tag": name, "simple_value": number} for name, number in numbers.items()]
    return library().event_pb2.Event(wall_time=moment, step=step, summary={"value": values})


def _record(event):
    """An event as the bytes of the file."""
    buffer = io.BytesIO()
    library().RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()


def library():
    """What torch's writer takes from tensorboard: the form of an event, the form of the file."""
    try:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        raise InputError(
            "-tensorboard true needs a package that is missing: pip install tensorboard"
        ) from None
    return types.SimpleNamespace(event_pb2=event_pb2, RecordWriter=RecordWriter)
