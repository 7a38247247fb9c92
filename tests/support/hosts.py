"""Test support: two machines on one, with network namespaces and a pair of veth devices."""

import contextlib
import os
import subprocess
import sys

from support.runs import ROOT

ADDRESSES = ("10.77.0.1", "10.77.0.2")
NAMES = ("one", "two")
HOSTS = """127.0.0.1 localhost
127.0.1.1 {own}
{address} {other}
"""


class Host:
    """A shell in namespaces of its own: its network, host name and /etc/hosts."""

    def __init__(self, *command):
        self.shell = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def do(self, command):
        """Run a shell command; OSError if it fails."""
        with contextlib.suppress(BrokenPipeError):
            self.shell.stdin.write(f"({command}) 2>&1 && echo done || echo failed\n")
            self.shell.stdin.flush()
        said = []
        for line in self.shell.stdout:
            if line == "done\n":
                return
            if line == "failed\n":
                break
            said.append(line)
        raise OSError(f"{command}: {' '.join(said) or self.shell.communicate()[1]}")

    def enter(self, folder):
        """The beginning of a command that runs on this host, in a folder."""
        words = f"nsenter --preserve-credentials -U -m -n -u -t {self.shell.pid} env -C".split()
        return [*words, str(folder)]  # nsenter has left the folder


@contextlib.contextmanager
def two(folder):
    """Two hosts, `one` and `two`. To itself each name is a loopback address, as on Debian.

    OSError where the system does not allow it.
    """
    with contextlib.ExitStack() as stack:
        hosts = []
        for index in range(2):
            # the second in the first one's user namespace, which owns both networks
            command = ["unshare", "-rnmu", "sh"]
            if hosts:
                pid = str(hosts[0].shell.pid)
                inside = ["nsenter", "--preserve-credentials", "-U", "-t", pid]
                command = [*inside, "unshare", "-nmu", "sh"]
            host = Host(*command)
            stack.callback(host.shell.communicate)
            host.do("mount --make-rprivate / && ip link set lo up")
            file = folder / f"hosts.{NAMES[index]}"
            other = {"other": NAMES[1 - index], "address": ADDRESSES[1 - index]}
            file.write_text(HOSTS.format(own=NAMES[index], **other))
            host.do(f"mount --bind {file} /etc/hosts && hostname {NAMES[index]}")
            host.do("mount --bind /dev/null /etc/resolv.conf")  # nobody waits for a name server
            hosts.append(host)
        hosts[0].do(f"ip link add wire0 type veth peer name wire1 netns {hosts[1].shell.pid}")
        for index, host in enumerate(hosts):
            host.do(f"ip addr add {ADDRESSES[index]}/24 dev wire{index}")
            host.do(f"ip link set wire{index} up")
        yield hosts


def rank(host, rank, command, data, folder, program=None, **environment):
    """Rank 0 or 1 of a run of two processes, on a host; `program`: in place of main.py."""
    group = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    group |= {"GROUP_RANK": str(rank), "MASTER_ADDR": "one", "MASTER_PORT": "29500"}
    return _start(
        [*host.enter(folder), sys.executable], command, data, program, **group, **environment
    )


def torchrun(host, command, data, folder, agent, program=None):
    """One agent of torchrun on a host."""
    words = [sys.executable, "-m", "torch.distributed.run", *agent.split()]
    return _start([*host.enter(folder), *words], command, data, program)


def _start(before, command, data, program, **environment):
    return subprocess.Popen(
        [*before, program or os.path.join(ROOT, "main.py"), *command.split(), "-data", str(data)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
