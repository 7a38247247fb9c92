"""Iterations a second of one process against several with the same replicas, on the CPU.

    python benchmarks/processes.py -data DIR [-nProcs 2]

DIR holds CIFAR-10; the run is main.py's, ResNet-20 with batch 128 and 2 replicas, each process with
its share of the cores. The runs take turns; the medians are over all but their first iterations.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile

import project  # noqa: F401  before all else: sets the path, names a missing package

# isort: split

import timing

MAIN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "main.py")
COMMAND = "-netType resnet -dataset cifar10 -depth 20 -batchSize 128"
ITERATIONS, WARM, ROUNDS = 30, 5, 3


def iterations(words, count):
    """Seconds of the first `count` iterations of a run, which is then ended."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, MAIN, *COMMAND.split(), *words, "-save", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            times = []
            for line in process.stdout:
                found = re.match(r" \| Epoch: \[1\]\[\d+/\d+\]\s+Time (\S+)", line)
                times += [float(found[1])] if found else []
                if len(times) == count:
                    break
            process.kill()
    if len(times) < count:
        sys.exit(f"the run ended after {len(times)} iterations")
    return times


def main():
    words = sys.argv[1:]
    if "-data" not in words:
        sys.exit("processes.py: -data DIR is missing, a folder with CIFAR-10")
    several = words[words.index("-nProcs") + 1] if "-nProcs" in words else "2"
    words += ["-nGPU", several]
    ways = {"1 process": ["-nProcs", "1"], f"{several} processes": ["-nProcs", several]}
    times = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            times[name] += iterations([*words, *way], ITERATIONS)[WARM:]
    print(f"{several} replicas, {COMMAND}; {timing.machine()}")
    one = statistics.median(times["1 process"])
    timing.table(
        ("what", "seconds an iteration", "times as fast"),
        [
            (name, f"{timing.median(times, name):.3f}", f"{one / timing.median(times, name):.2f}")
            for name in times
        ],
        setting=f"{COMMAND}, {several} replicas",
    )


if __name__ == "__main__":
    main()
