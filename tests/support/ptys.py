"""Test support: runs a program in a pseudo-terminal and emulates the screen."""

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

PART = re.compile(r"\x1b\[(\d*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n])")


def open_pty(columns):
    """(our end, the program's end) of a pseudo-terminal of this width."""
    ours, theirs = pty.openpty()
    resize(theirs, columns)
    return ours, theirs


def resize(end, columns):
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))


def read(ours, seconds=0.2):
    """The text that can be read now."""
    data = b""
    with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
        while select.select([ours], [], [], seconds)[0]:
            data += os.read(ours, 65536)
            seconds = 0.02
    return data.decode()


class Screen:
    """A terminal that knows what main.py uses: letters, \\r, \\n, erasing to the end of a line.

    `rows` has all lines since the start, as if the screen never scrolled.
    """

    def __init__(self, columns):
        self.columns, self.cells, self.row, self.column = columns, [[]], 0, 0

    def feed(self, text):
        assert PART.sub("", text) == "", "an unknown control sequence"
        for number, letter, back, down, plain in PART.findall(text):
            if letter:
                assert letter == "K" and number in ("", "0")
                del self.cells[self.row][self.column :]
            elif back:
                self.column = 0
            elif down:
                self._next()
            else:
                if self.column == self.columns:  # the line is full: wrap
                    self._next()
                    self.column = 0
                cells = self.cells[self.row]
                cells += " " * (self.column + 1 - len(cells))
                cells[self.column] = plain
                self.column += 1
        return self

    def _next(self):
        self.row += 1
        if self.row == len(self.cells):
            self.cells.append([])

    @property
    def rows(self):
        return ["".join(cells) for cells in self.cells]


def start(command, columns, folder, **environment):
    """Start a program whose stdin, stdout and stderr are a terminal: (process, our end)."""
    ours, theirs = open_pty(columns)
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", **environment},
    )
    os.close(theirs)
    return process, ours


def until(process, ours, seconds=100, wanted=None):
    """The chunks that a program writes until it ends or has written `wanted`."""
    chunks, limit = [], time.monotonic() + seconds
    while time.monotonic() < limit:
        chunk = read(ours)
        chunks += [chunk] if chunk else []
        if wanted and wanted in "".join(chunks):
            return chunks
        if not chunk and process.poll() is not None:
            return chunks
    raise AssertionError("".join(chunks)[-2000:])
