"""The processes of a run: join, share out, sum, speak once, leave. The one place that knows ranks.

Takes the place of nn.DataParallelTable's threads. A run of one process has no group, and all of
this does nothing. Every function that exchanges something must be called by all processes.
"""

import contextlib
import datetime
import os
import socket
import sys
import time
import traceback
import warnings

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import launch
from errors import InputError

# For one exchange. A process that has died is noticed at once (gloo) or ended by parent or agent;
# this is for a machine that vanished. In between lie at most a checkpoint and some loading.
PATIENCE = datetime.timedelta(minutes=10)


def join():
    """Join the group that the environment tells of, if any; returns this process's device."""
    device = _pick_device()
    if launch.joined():
        if device.type == "cuda":
            torch.cuda.set_device(device)
            dist.init_process_group("nccl", timeout=PATIENCE, device_id=device)
        else:
            dist.init_process_group("gloo", timeout=PATIENCE)
        if rank() == 0:
            for key in ("failed", "prepared"):
                _store().set(key, "0")
        dist.barrier()
    if device.type == "cpu":
        say("=> No CUDA device: running on the CPU")
    if size() > 1:
        say(f"=> {size()} processes on {device.type}")
    return device


def _pick_device():
    """CUDA where there is one, else the CPU; a device that is named but not there is refused."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if torch.backends.cuda.is_built() and "MIG" not in named:
        ids = named.split(",") if named.strip() else []
        ids = ids[
            : next((i for i, word in enumerate(ids) if word.strip().startswith("-")), len(ids))
        ]
        if count < len(ids):
            raise InputError(f"CUDA_VISIBLE_DEVICES={named}, but only {count} of these exist")
    if not count:
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", 0)) if launch.joined() else 0
    if local >= count:
        raise InputError(
            f"process {local} of this machine has no CUDA device: only {count} visible; start as "
            "many processes as there are devices"
        )
    return torch.device("cuda", local)


def rank():
    """The place of this process in the group; the first, 0, writes and speaks."""
    return dist.get_rank() if dist.is_initialized() else 0


def size():
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def here():
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if dist.is_initialized() else 1


def say(*args):
    """Print on the first rank only, at once: logs are followed through pipes."""
    if int(os.environ.get("RANK", 0)) == 0:
        # in one piece, for a thread may speak as well (folder.py)
        print(" ".join(map(str, args)) + "\n", end="", flush=True)


def shares(count):
    """`count` things dealt to the processes in order, the first have one more: a slice for each."""
    each, longer = divmod(count, size())
    ends = [r * each + min(r, longer) for r in range(size() + 1)]
    return [slice(start, end) for start, end in zip(ends, ends[1:])]


def total(tensor):
    """The sum of a tensor over all processes, in place."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


def gather(value):
    """The plain value of every process, as a list in their order."""
    if size() == 1:
        return [value]
    values = [None] * size()
    dist.all_gather_object(values, value)
    return values


def take_first(tensors):
    """Overwrite tensors by those of the first process, one exchange for each type of number."""
    if size() == 1:
        return
    tensors = list(tensors)
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in same])
        dist.broadcast(flat, 0)
        for tensor, part in zip(same, flat.split([tensor.numel() for tensor in same])):
            tensor.copy_(part.view_as(tensor))


def parallel(model, device):
    """The model as it is trained: over several processes gradients are averaged, with overlap."""
    if size() == 1:
        return model
    with warnings.catch_warnings():
        # torch 2.15 has another name for it, which 2.11 does not know
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        return DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,  # the first's running statistics hold, sent where needed
            gradient_as_bucket_view=True,
        )


def in_turn(action):
    """Call `action` on the first process, then on the first of each machine, then on the rest.

    However long it takes: it may be the preparation of a whole data set.
    """
    if size() == 1:
        return action()
    machine, first_here = os.environ.get("GROUP_RANK", "0"), os.environ.get("LOCAL_RANK") == "0"
    store, ever = _store(), datetime.timedelta(days=7)
    if rank():
        store.wait(["prepared everywhere"], ever)
        if not first_here:
            store.wait([f"prepared on {machine}"], ever)
    result = action()
    if first_here:
        store.set(f"prepared on {machine}", "1")
    if rank() == 0:
        store.set("prepared everywhere", "1")
    return result


def agents():
    """Which torchrun agents started the processes, as names that no later agent will have."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return []
    parent, began = os.getppid(), ""
    with contextlib.suppress(OSError), open(f"/proc/{parent}/stat") as file:
        began = file.read().rpartition(")")[2].split()[19]  # in ticks since the machine's start
    return sorted(set(gather(f"{socket.gethostname()} {parent} {began}")))


def wait():
    """Wait until every process is here; if one has failed, that one speaks."""
    if size() > 1:
        with contextlib.suppress(RuntimeError):
            dist.barrier()


def _store():
    """Where the processes leave notes for each other."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=False, timeout=datetime.timedelta(seconds=5))


def fail(error):
    """End this process for an error; of several processes only the one that failed first speaks."""
    lost = dist.is_initialized() and _is_loss(error)
    if lost:
        time.sleep(3)  # for who failed to say so, and for parent or agent to end this process
    words = str(error)
    if lost:
        words = f"process {rank()} lost the others: {words.splitlines()[0]}"
    elif not isinstance(error, InputError):
        words = "".join(traceback.format_exception(error)).rstrip()
    if _first_to_fail():
        print(f"{launch.program()}: {words}", file=sys.stderr, flush=True)
    launch.leave(1)


def _first_to_fail():
    if not launch.joined():
        return True
    try:
        return _store().add("failed", 1) == 1
    except (RuntimeError, KeyError, ValueError):  # the store has gone with the first process
        return not dist.is_initialized()


def _is_loss(error):
    """Whether an error only says that another process is gone."""
    signs = ("Connection closed", "Connection reset", "Broken pipe", "Timed out", "gloo", "NCCL")
    known = isinstance(error, dist.DistError)
    return known or isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
