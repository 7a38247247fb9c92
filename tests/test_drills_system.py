"""Drills: outputs are closed or full at random moments; /dev/shm is full and the run is killed.

As test_drills.py: long, and every drill prints a line with its counts.
"""

import contextlib
import ctypes
import os
import random
import select
import shutil
import signal
import subprocess
import time

import pytest
from support.forks import await_text, ended, finished, fork, same_folders
from support.runs import NET, results, same

pytestmark = pytest.mark.slow
RUN = NET + " -manualSeed 3 -nGPU 2 -LRSteps 3"
OUTPUTS = ("pipe", "slow pipe", "/dev/full", "pipe", "slow pipe", "closed")
LOST = "main.py: cannot write to stdout ("


def reader(descriptor, kind):
    """Read a pipe for a random time, perhaps with a pause so that it fills up, then close it."""
    end = time.monotonic() + random.random() * 1.5
    while time.monotonic() < end:
        if kind == "slow pipe" and random.random() < 0.05:
            time.sleep(0.3)
        if select.select([descriptor], [], [], 0.01)[0]:
            size = random.choice((1, 10, 5000))
            if not os.read(descriptor, size):
                break
    os.close(descriptor)


def begin(kind, command, data, folder):
    """Start a run with such a stdout, and let it happen to it; returns the child."""
    if kind in ("/dev/full", "closed"):
        output = os.open("/dev/full", os.O_WRONLY)
        child = fork(command, data, folder, output=output, closed=kind == "closed")
        os.close(output)
        return child
    reading, writing = os.pipe()
    child = fork(command, data, folder, lambda: os.close(reading), output=writing)
    os.close(writing)
    reader(reading, kind)
    return child


def test_outputs_closed_or_full_at_random_moments(cifar, tmp_path):
    """The run goes on to its end, says so once on stderr, and nothing is lost."""
    random.seed(7)
    command = RUN + " -nEpochs 8"
    finished(command + " -save straight", cifar, tmp_path)
    trials = 20
    said_so = 0
    for trial in range(trials):
        kind = OUTPUTS[trial % len(OUTPUTS)]
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        (tmp_path / "said").write_text("")
        child = begin(kind, command + " -save run", cifar, tmp_path)
        status = ended(child, 200)
        said = (tmp_path / "said").read_text()
        assert status == 0 and "Traceback" not in said, (kind, status, said)
        assert said.count(LOST) <= 1 and said.count("\n") == said.count("=> ") + said.count(LOST)
        said_so += said.count(LOST)
        same_folders(tmp_path / "straight", tmp_path / "run", 8)
    assert said_so
    print(f"\noutputs: {trials} trials, {trials} ended with status 0 and equal, {said_so} said so")


class SharedMemory:
    """A small /dev/shm that only the runs started here see."""

    def __init__(self, size):
        self.shell = subprocess.Popen(
            ["unshare", "-rm", "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.folder = os.path.join("/proc", str(self.shell.pid), "root", "dev", "shm")
        self.shell.stdin.write(f"mount -t tmpfs -o size={size} tmpfs /dev/shm && echo done\n")
        self.shell.stdin.flush()
        assert self.shell.stdout.readline() == "done\n"

    def enter(self):
        """Let this process see it."""
        libc = ctypes.CDLL(None, use_errno=True)
        for name in ("user", "mnt"):
            file = os.open(f"/proc/{self.shell.pid}/ns/{name}", os.O_RDONLY)
            assert libc.setns(file, 0) == 0, os.strerror(ctypes.get_errno())

    def fill(self):
        """Take all of it but a random rest."""
        rest = random.choice((0, 0, 1 << 16, 1 << 22))
        with contextlib.suppress(OSError), open(f"{self.folder}/fill", "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        os.truncate(f"{self.folder}/fill", max(0, os.path.getsize(f"{self.folder}/fill") - rest))

    def free(self):
        """Free what `fill` took; what else lies there was left by killed runs."""
        with contextlib.suppress(FileNotFoundError):
            os.remove(f"{self.folder}/fill")
        return os.listdir(self.folder)

    def end(self):
        self.shell.communicate()


def test_killed_with_a_full_shared_memory(photos, tmp_path):
    """The workers' batches lie in it. After an end of either kind nothing is lost."""
    random.seed(8)
    trials = 9
    command = (
        "-netType resnet -depth 18 -batchSize 4 -trainCrop 64 -LR 0.001 -nThreads 2 -manualSeed 4"
    )
    epochs = 2 + trials // 3
    command += f" -nEpochs {epochs}"
    shared = SharedMemory("60m")
    finished(command + " -save straight", photos, tmp_path)
    command += " -saveEvery 1e-9 -save run -resume run"
    killed, sentences, said, left = 0, set(), tmp_path / "said", []
    for trial in range(trials):
        said.write_text("")
        child = fork(command, photos, tmp_path, shared.enter)
        if trial % 3:  # else it is full from the start
            await_text(said, "Time")
            time.sleep(random.random())
        shared.fill()
        status = ended(child, random.choice((0.1, 1)) if trial % 3 else 60)
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            killed += 1
        elif status:
            text = said.read_text()
            assert status == 1 and "Traceback" not in text, text
            [line] = [line for line in text.splitlines() if line.startswith("main.py: ")]
            sentences.add(line.partition(": ")[2][:47])
        time.sleep(0.3)  # the workers end with their parent
        left = shared.free()
        if status == 0:
            break  # there was room for all batches: the run is finished
    said.write_text("")
    assert ended(fork(command, photos, tmp_path, shared.enter), 300) == 0, said.read_text()
    same(results(tmp_path / "straight", epochs), results(tmp_path / "run", epochs))
    shared.end()
    assert sentences
    print(f"\n/dev/shm full: {trials} trials, {killed} killed, {len(left)} files left there,")
    print(f"resumed with difference 0; ended by themselves: {sorted(sentences)}")
