"""Drills: a run is killed, its disk fills, its files are damaged; it ends as if nothing had been.

Long, so only with -m slow. Every drill prints a line with its counts. SIGTERM at random moments:
test_signals.py.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys

import pytest
from support.forks import await_text, ended, finished, fork, same_folders
from support.runs import NET, ROOT, log, results, same

from storage import atomic

pytestmark = pytest.mark.slow
RUN = NET + " -manualSeed 3 -nGPU 2 -LRSteps 3"


def test_kill_9_at_a_hundred_moments(cifar, tmp_path):
    random.seed(1)
    epochs, kills, torn, said = 150, 0, 0, tmp_path / "said"
    command = RUN + f" -nEpochs {epochs} -keep 3"
    finished(command + " -save straight", cifar, tmp_path)
    command += " -saveEvery 1e-9 -save run -resume run"
    for trial in range(100):
        said.write_text("")
        child = fork(command, cifar, tmp_path)
        # one in ten is killed while it begins
        while trial % 10 and "Time" not in said.read_text():
            assert ended(child, 0.01) is None, said.read_text()
        status = ended(child, random.random() * 0.4)
        if status is not None:
            break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        torn += bool(atomic.left_over(tmp_path / "run")) if (tmp_path / "run").exists() else 0
    assert kills == 100 and torn, f"ended after {kills} kills: {said.read_text()}"
    finished(command, cifar, tmp_path)
    largest = same_folders(tmp_path / "straight", tmp_path / "run", epochs)
    print(f"\nkill -9: {kills} trials, {kills} recovered, {torn} in a write, difference {largest}")


def damage(path):
    """Cut a file short or change bytes of it, at a random place."""
    content = bytearray(path.read_bytes())
    place, how = random.randrange(len(content)), random.choice(["cut", "bit", "zeros", "gone"])
    if how == "cut":
        del content[place:]
    elif how == "bit":
        content[place] ^= 1 << random.randrange(8)
    elif how == "zeros":
        content[place : place + 512] = bytes(len(content[place : place + 512]))
    path.write_bytes(content)
    if how == "gone":
        path.unlink()


def test_the_newest_file_is_damaged(cifar, tmp_path):
    random.seed(2)
    finished(RUN + " -nEpochs 4 -save straight", cifar, tmp_path)
    finished(RUN + " -nEpochs 3 -save three", cifar, tmp_path)
    trials = named = 0
    for name in ("latest.pth", "model_3.pth", "optimState_3.pth"):
        for _ in range(8):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            shutil.copytree(tmp_path / "three", tmp_path / "run")
            damage(tmp_path / "run" / name)
            said = finished(RUN + " -nEpochs 4 -save run -resume run", cifar, tmp_path)
            largest = same_folders(tmp_path / "straight", tmp_path / "run", 4)
            trials += 1
            named += f"run/{name}" in said.partition("going on from")[0]
    print(f"\ndamaged: {trials} trials, {trials} recovered, {named} named, difference {largest}")
    assert named >= trials - 4  # the others changed a byte without a meaning


class Disk:
    """A folder on a small disk of its own, mounted where only the runs started here see it."""

    def __init__(self, folder, size):
        os.makedirs(folder)
        self.folder = folder
        self.shell = subprocess.Popen(
            ["unshare", "-rm", "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.inside = f"/proc/{self.shell.pid}/root{folder}"  # the folder as it is seen there
        self.do(f"mount -t tmpfs -o size={size} tmpfs {folder}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.shell.stdin.close()
        self.shell.wait(60)

    def do(self, command):
        """Run a shell command where the disk is; it has to succeed."""
        self.shell.stdin.write(f"{command} && echo done || echo failed\n")
        self.shell.stdin.flush()
        assert self.shell.stdout.readline() == "done\n", command

    def begin(self, command, data):
        """main.py -save the disk; `said` and `status` appear beside it."""
        said = f"{self.folder}.said"
        run = f"{sys.executable} {ROOT}/main.py {command} -save {self.folder} -data {data}"
        here = os.path.dirname(self.folder)
        self.do(f"cd {here}; rm -f {said} {said}.status; touch {said}")
        self.do(f"(OMP_NUM_THREADS=1 {run} >{said} 2>&1; echo $? >{said}.status) & true")
        return said

    def finish(self, command, data):
        """Run to the end; returns (what was said, the status)."""
        said = self.begin(command, data)
        await_text(f"{said}.status", "\n")
        with open(said) as text, open(f"{said}.status") as status:
            return text.read(), int(status.read())


def test_the_disk_is_full(cifar, tmp_path):
    """At sizes from one where nothing can be saved to one with room for nearly all."""
    finished(RUN + " -nEpochs 4 -save straight", cifar, tmp_path)
    trials = held = 0
    for kilobytes in range(300, 2301, 400):
        folder = str(tmp_path / f"disk{kilobytes}")
        with Disk(folder, f"{kilobytes}k") as disk:
            said, status = disk.finish(RUN + " -nEpochs 4", cifar)
            assert status == 1 and "Traceback" not in said
            assert re.search(r"=> epoch \d could not be saved: No space left on device; ", said)
            assert said.splitlines()[-1].startswith(
                "main.py: the state at the end of the run could"
            )
            assert not atomic.left_over(disk.inside) and not os.path.exists(disk.inside + "/lock")
            held += os.path.exists(disk.inside + "/latest.pth")
            disk.do(f"mount -o remount,size=50m {folder}")
            said, status = disk.finish(RUN + f" -nEpochs 4 -resume {folder}", cifar)
            assert status == 0, said
            copy = tmp_path / f"copy{kilobytes}"
            shutil.copytree(disk.inside, copy)
        largest = same_folders(tmp_path / "straight", copy, 4)
        trials += 1
    assert 0 < held < trials
    print(f"\nfull disk: {trials} trials, {trials} recovered, difference {largest}")


def read_only(folder):
    """The command that makes a folder read-only: refused while a file there is being written."""
    again = f"for n in $(seq 1000); do mount -o remount,bind,ro {folder} 2>/dev/null && break"
    return f"mount --bind {folder} {folder} && {{ {again}; sleep 0.01; done; test ! -w {folder}; }}"


def test_the_disk_turns_read_only(cifar, tmp_path):
    """While the run goes on; once it can be written again all is there."""
    finished(RUN + " -nEpochs 30 -save straight", cifar, tmp_path)
    folder = str(tmp_path / "disk")
    with Disk(folder, "100m") as disk:
        said = disk.begin(RUN + " -nEpochs 30", cifar)
        await_text(said, "epoch # 4 ")
        disk.do(read_only(folder))
        await_text(said, "could not be saved: Read-only file system")
        disk.do(f"umount {folder}")
        await_text(f"{said}.status", "0\n")
        copy = tmp_path / "copy"
        shutil.copytree(disk.inside, copy)
        with open(said) as lines:
            lost = sum("could not be saved" in line for line in lines)
        disk.do(read_only(folder))
        refused, status = disk.finish(RUN + f" -nEpochs 31 -resume {folder}", cifar)
        assert status == 1
        assert f"main.py: cannot save to {folder}: Read-only file system" in refused
    same(results(tmp_path / "straight", 30), results(copy, 30))
    print(f"\nread-only: {lost} saves failed, 1 run recovered, difference 0.0")


def test_two_runs_on_one_folder(cifar, tmp_path):
    """The second is refused, the first goes on undisturbed."""
    finished(RUN + " -nEpochs 30 -save straight", cifar, tmp_path)
    refused = 0
    (tmp_path / "said").write_text("")
    first = fork(RUN + " -nEpochs 30 -save run", cifar, tmp_path)
    await_text(tmp_path / "said", "epoch # 2 ")
    os.kill(first, signal.SIGSTOP)  # for the others to find it, whatever they do
    os.mkdir(tmp_path / "second")
    try:
        for words in ("", f" -resume {tmp_path / 'run'}", " -saveEvery 1"):
            command = RUN + f" -nEpochs 30 -save {tmp_path / 'run'}" + words
            said = finished(command, cifar, tmp_path / "second", 1)
            assert f"another run writes to {tmp_path / 'run'}: process {first} on " in said
            refused += 1
    finally:
        os.kill(first, signal.SIGCONT)
    assert ended(first, 200) == 0
    largest = same_folders(tmp_path / "straight", tmp_path / "run", 30)
    assert len(log(tmp_path / "run")) == 30
    print(f"\ntwo runs: {refused} trials, {refused} refused, difference {largest}")
