"""-tensorboard true: the numbers of log.jsonl once more, as a file of events for TensorBoard.

No Lua file. It is written at the end of an epoch from the log's lines; a resumed run makes it anew
from them, so that no step is there twice and none is missing. Written here by hand, for the format
is four kinds of fields: torch's writer needs tensorboard, and tells of a full disk in a thread.
"""

import glob
import os
import socket
import struct
import time

import log

SUFFIX = ".main"  # of our files: others that lie in the folder stay


class Events:
    """The file of events in a folder, kept up with the lines of the log."""

    def __init__(self, folder):
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
            file.write(_record(_double(1, now) + _bytes(3, b"brain.Event:2")))
        self.path, self.written = path, 0


def _event(moment, step, numbers):
    """An Event in protocol-buffer form: wall_time 1, step 2, summary 5 of values 1."""
    values = [
        _bytes(1, _bytes(1, name.encode()) + _float(2, number)) for name, number in numbers.items()
    ]
    return _double(1, moment) + _integer(2, step) + _bytes(5, b"".join(values))


# The fields of protocol buffers: number and kind, then the value.


def _integer(field, value):
    return _varint(field << 3) + _varint(value)


def _double(field, value):
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _bytes(field, value):
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _float(field, value):
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _varint(value):
    """Seven bits a byte, the lowest first; all but the last byte have the eighth set."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _record(data):
    """A TFRecord: length, its checksum, data, its checksum."""
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data):
    """CRC-32C, masked as TensorFlow does; bit by bit, for an epoch has 500 bytes."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
