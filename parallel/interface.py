"""Waiting for the master, and the interface by which machines reach each other (gloo, nccl).

gloo tells the other machines the address of the host name. By default that is a loopback address on
Debian and Ubuntu, which no other machine can reach. So we take the interface from the route to the
master and set the variables that gloo and nccl read, unless the user has set them. Linux only.
"""

import array
import ipaddress
import os
import socket
import struct
import sys
import time

from runtime.errors import InputError, cause
from runtime.terminal import complain, is_rank_0

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
SIOCGIFCONF, ENTRY, ENTRIES = 0x8912, 40, 1024  # linux/sockios.h; bytes of a struct ifreq


def route(host, port):
    """This machine's own address on the route to another; nothing is sent. InputError if none."""
    try:
        # the system puts addresses without a route last
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(place)
            return probe.getsockname()[0]
    except (OSError, UnicodeError) as error:  # UnicodeError: not a valid name
        raise InputError(unreachable(cause(error))) from None


def wait(seconds):
    """Wait until the master accepts connections; InputError if it does not in so many seconds.

    Even its name may come later than this process, where both are containers. torch gives up an
    unknown name after 5 s, and prints frames of its C++ at each attempt.
    """
    began, silent = time.monotonic(), True
    while error := refused():
        waited = time.monotonic() - began
        if waited > seconds or isinstance(error, ValueError):
            raise InputError(unreachable(cause(error)))
        if waited > 5 and silent and is_rank_0("LOCAL_RANK"):
            silent = False
            complain(f"=> waiting for rank 0 for {seconds / 60:.0f} minutes: {cause(error)}")
        time.sleep(0.5)


def refused():
    """The error of a connection to the master, or None; a ValueError if no connection can be."""
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        socket.create_connection(place, timeout=5).close()
    except OSError as error:
        return error
    except (UnicodeError, OverflowError):
        return ValueError("not a host name and a port")
    return None


def choose(store, rank, world_size):
    """Set VARIABLES to the interface that the other machines reach. Every rank must call it.

    store: the key-value store of the process group.
    """
    own = route(os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"])
    store.set(f"address of {rank}", own)
    if _is_loopback(own):  # on the master's machine: take the route to any other machine
        others = (store.get(f"address of {other}").decode() for other in range(world_size))
        other = next((other for other in others if not _is_loopback(other)), None)
        own = other and route(other, os.environ["MASTER_PORT"])
    if name := own and _holder(own):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # exactly this name


def unreachable(reason):
    """The sentence that this host cannot reach the others, with the variables that decide it."""
    master = f"MASTER_ADDR={os.environ.get('MASTER_ADDR')}"
    port = f"MASTER_PORT={os.environ.get('MASTER_PORT')}"
    found = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    interface = " ".join(found) or f"{VARIABLES[0]} (not set)"
    return (
        f"{socket.gethostname()} cannot connect to the other processes, {master} {port}: {reason}; "
        f"every machine must reach that address, and the others by the interface in {interface}"
    )


def _is_loopback(address):
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _holder(address):
    """The name of the interface that has this address, or None if it is unknown."""
    if sys.platform != "linux":
        return None
    if ":" in address:
        wanted = ipaddress.ip_address(address.partition("%")[0]).packed.hex()
        with open("/proc/net/if_inet6") as file:
            return next((line.split()[5] for line in file if line.startswith(wanted)), None)
    import fcntl  # not on Windows

    buffer = array.array("B", bytes(ENTRY * ENTRIES))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("iP", len(buffer), buffer.buffer_info()[0])
        size, _ = struct.unpack("iP", fcntl.ioctl(probe, SIOCGIFCONF, request))
    wanted = socket.inet_aton(address)
    for start in range(0, size, ENTRY):
        entry = buffer[start : start + ENTRY].tobytes()  # name, family, port, address
        if entry[20:24] == wanted:
            return entry[:16].split(b"\0")[0].decode().partition(":")[0]  # eth0:1 is an alias
    return None
