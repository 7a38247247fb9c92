"""Damaged Torch7 files: each loads or is refused with ValueError, in bounded time and memory.

A drill (pytest -m slow): some twenty thousand mutants of the reference files, the same each time.
"""

import random
import resource
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from support.t7_parts import written

from formats import t7

SEEDS = [
    path.read_bytes() for path in sorted((Path(__file__).parent / "reference/t7").glob("*.t7"))
]
MUTANTS = 24_000
SECONDS = 2.0  # of processor time for one file; the seeds take some milliseconds
MEMORY = 256 << 20  # beyond what the process has when the drill begins
INTEGERS = [
    0,
    1,
    2,
    3,
    4,
    5,
    8,
    9,
    127,
    255,
    2**15,
    2**16,
    2**24,
    2**28,
    2**31 - 1,
    -1,
    -2,
    -(2**31),
]


def flip(draw, data, other):
    for _ in range(draw.choice([1, 1, 2, 8])):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def truncate(draw, data, other):
    del data[draw.randrange(len(data)) :]


def edit(draw, data, other):
    """Another number, of 4 or 8 bytes or in digits, over the bytes at some place."""
    at, value = draw.randrange(len(data)), draw.choice(INTEGERS) + draw.choice([0, 0, -1, 1])
    size = draw.choice([4, 8])
    if data[0] < ord("0"):
        data[at : at + size] = value.to_bytes(9, "little", signed=True)[:size]
    else:
        lines = data.split(b"\n")
        line = draw.randrange(len(lines))
        words = lines[line].split(b" ")
        words[draw.randrange(len(words))] = str(value << (32 * draw.randrange(3))).encode()
        lines[line] = b" ".join(words)
        data[:] = b"\n".join(lines)


def splice(draw, data, other):
    a, b = sorted(draw.randrange(len(other)) for _ in range(2))
    at = draw.randrange(len(data))
    data[at : at + draw.choice([0, b - a])] = other[a:b]


def move(draw, data, other):
    a, b = sorted(draw.randrange(len(data)) for _ in range(2))
    piece = data[a:b]
    if draw.random() < 0.5:
        del data[a:b]
    at = draw.randrange(len(data) + 1)
    data[at:at] = piece


def walk(value):
    """Every tensor and storage that a tree holds, in memory that is really there."""
    found, seen, todo = [], set(), [value]
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            todo += [*value.keys(), *value.values(), getattr(value, "header", None)]
        elif isinstance(value, t7.Function):
            todo.append(value.upvalues)
        elif isinstance(value, t7.Storage):
            todo.append(value.data)
        elif isinstance(value, torch.Tensor):
            found.append(value)
    return found


def check(tree):
    for tensor in walk(tree):
        flat = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
        flat.double().sum()  # touches every byte of the storage
        if tensor.numel():
            first, last = (0,) * tensor.ndim, tuple(n - 1 for n in tensor.shape)
            tensor[first].item(), tensor[last].item()
    first = written(tree)
    assert written(t7.loads(first)) == first


def too_long(*_):
    raise TimeoutError("a file hangs the reader")


@pytest.fixture
def bounds():
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, too_long)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)


@pytest.mark.slow
def test_damaged_files(bounds, tmp_path):
    draw, counts, slowest = random.Random(1), Counter(), 0.0
    path = tmp_path / "mutant.t7"
    for number in range(MUTANTS):
        data, other = bytearray(draw.choice(SEEDS)), draw.choice(SEEDS)
        for _ in range(draw.choice([1, 1, 1, 2, 3])):
            mutation = draw.choice([flip, truncate, edit, edit, splice, move])
            if data:
                mutation(draw, data, other)
        data = bytes(data)
        signal.alarm(60)
        started = time.process_time()
        try:
            if number % 4:
                tree = t7.loads(data)
            else:
                path.write_bytes(data)
                tree = t7.load(path)
            check(tree)
            counts["loaded"] += 1
        except ValueError as error:
            assert ": byte " in str(error), (number, error)
            counts["refused"] += 1
        slowest = max(slowest, time.process_time() - started)
        assert slowest < SECONDS, number
    print(f"{MUTANTS} files: {dict(counts)}, slowest {slowest * 1000:.0f} ms")
    assert counts["loaded"] > MUTANTS // 50 and counts["refused"] > MUTANTS // 2
