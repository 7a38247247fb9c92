"""log.jsonl of a run folder: the header, then a line for each epoch. Each save appends its own.

A checkpoint holds the header and the newest lines, the tail. Of the lines before, the head, it
holds the size and a checksum: a resumed run takes the head from the file. So a save costs the same
after any number of epochs, and a copy made while the run writes may have a slightly older log.jsonl
than its checkpoint.
"""

import collections
import itertools
import json
import os
import re
import zlib

from runtime import regular_files
from runtime.terminal import note
from storage import atomic, curves, schema

_TAIL = 10  # lines
_BLOCK = 1 << 20  # bytes


class LogFile:
    """The log of one start of a run. `state` is what a checkpoint holds of it."""

    def __init__(self, path, header, checkpoint):
        """header: of this start. checkpoint: what the run resumes, or {}."""
        self.before, *tail = map(curves.named, checkpoint.get("log", [header]))
        self.path, self.header, self.tail = path, header, collections.deque(tail)
        # earlier versions had all lines in "log"
        head = checkpoint.get("logged", {}) if tail else {}
        self.size, self.crc = head.get("size", 0), head.get("crc", 0)
        self.first = head.get("first", tail[0]["epoch"] if tail else None)  # epoch of the run
        self.written, self.end = 0, None  # lines of the tail in the file; where they end

    def state(self):
        head = {"first": self.first, "size": self.size, "crc": self.crc}
        return {"log": [self.header, *self.tail], "logged": head}

    def add(self, line):
        """Add an epoch's line. The next `write` puts it into the file."""
        self.tail.append(line)
        self.first = line["epoch"] if self.first is None else self.first

    def is_in(self, path, any_header):
        """Whether a file has this log or the beginning of it, and no more than a final line."""
        tail = _encoded(self.tail)
        with regular_files.opened(path) as file:
            header = file.readline(_BLOCK)
            if not (any_header or _encoded([self.before]).startswith(header)):
                return False
            if not self._has_head(file):
                return False
            found = re.sub(rb'\{"final"[^\n]*\n?\Z', b"", file.read(len(tail) + _BLOCK))
            return tail.startswith(found) and not file.read(1)

    def begin(self, source):
        """Make the file, with the head of the file `source`. `write` replaces the header."""
        self._rewrite(self.before, source)
        if self.before is not self.header:
            self.end = None

    def write(self, *final):
        """Append the lines that the file lacks, then the line `final`, and flush to disk."""
        there = os.path.getsize(self.path) if os.path.isfile(self.path) else -1
        if self.end is None or there < self.end:  # with an earlier header, or removed meanwhile
            self._rewrite(self.header, self.path)
        new = _encoded(itertools.islice(self.tail, self.written, None))
        if new or final:
            with open(self.path, "r+b") as file:
                file.seek(self.end)
                file.truncate()  # what a full disk or a final line left
                file.write(new + _encoded(final))
                file.flush()
                os.fsync(file.fileno())
            self.end += len(new)
        while len(self.tail) > _TAIL:
            line = _encoded([self.tail.popleft()])
            self.size, self.crc = self.size + len(line), zlib.crc32(line, self.crc)
        self.written = len(self.tail)

    def after(self, epoch):
        """The lines of the epochs after `epoch`. Those of the head are read from the file."""
        if not self.tail or self.tail[0]["epoch"] > epoch + 1:
            with regular_files.opened(self.path) as file:
                file.readline(_BLOCK)
                left = self.size
                while left and (text := file.readline(min(left, _BLOCK))):
                    left -= len(text)
                    line = curves.parsed(text)
                    if schema.is_count(line.get("epoch")) and line["epoch"] > epoch:
                        yield line
        yield from (line for line in self.tail if line["epoch"] > epoch)

    def _rewrite(self, header, source):
        if self.size and not self._is_head_of(source):
            first = self.tail[0]["epoch"]
            lost = f"{source} lacks the lines of the epochs before {first}"
            note(f"=> {lost}: {self.path} begins with epoch {first}")
            self.size = self.crc = 0
        with atomic.replacing(self.path) as file:
            file.write(_encoded([header]))
            if self.size:
                with regular_files.opened(source) as old:
                    old.readline(_BLOCK)
                    for left in range(self.size, 0, -_BLOCK):
                        file.write(old.read(min(left, _BLOCK)))
            file.write(_encoded(self.tail))
            end = file.tell()
        self.end, self.written = end, len(self.tail)

    def _is_head_of(self, path):
        try:
            with regular_files.opened(path) as file:
                file.readline(_BLOCK)
                return self._has_head(file)
        except OSError:
            return False

    def _has_head(self, file):
        """Whether the head follows in a file; reads it."""
        if os.fstat(file.fileno()).st_size < self.size:
            return False
        crc = 0
        for left in range(self.size, 0, -_BLOCK):
            crc = zlib.crc32(file.read(min(left, _BLOCK)), crc)
        return crc == self.crc


def _encoded(lines):
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)
