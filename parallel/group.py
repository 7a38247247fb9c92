"""The process group of a run: join, deal out, exchange. The one place that knows ranks.

Takes the place of nn.DataParallelTable's threads. A run of one process has no group, and all of
this does nothing. Every function that exchanges something must be called by all processes.
"""

import contextlib
import datetime
import os
import socket
import warnings

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from parallel import launch
from runtime.errors import InputError
from runtime.terminal import say

# For one exchange. A process that has died is noticed at once (gloo) or ended by parent or agent;
# this is for a machine that vanished. In between lie at most a checkpoint and some loading.
TIMEOUT = datetime.timedelta(minutes=10)


def join():
    """Join the group that the environment tells of, if any; returns this process's device."""
    device = _pick_device()
    if launch.joined():
        if device.type == "cuda":
            torch.cuda.set_device(device)
            dist.init_process_group("nccl", timeout=TIMEOUT, device_id=device)
        else:
            dist.init_process_group("gloo", timeout=TIMEOUT)
        if rank() == 0:
            for key in ("failed", "prepared"):
                _store().set(key, "0")
        dist.barrier()
    if device.type == "cpu":
        say("=> No CUDA device: running on the CPU")
    if world_size() > 1:
        say(f"=> {world_size()} processes on {device.type}")
    return device


def _pick_device():
    """CUDA where there is one, else the CPU; a device that is named but not there is refused."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if torch.backends.cuda.is_built() and "MIG" not in named:
        ids = [word.strip() for word in named.split(",")] if named.strip() else []
        # CUDA ignores all from the first invalid one, such as -1
        ids = ids[: next((i for i, word in enumerate(ids) if word.startswith("-")), len(ids))]
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
    """The rank of this process; rank 0 writes and speaks."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world_size():
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if dist.is_initialized() else 1


def all_reduce(tensor):
    """The sum of a tensor over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_gather(value):
    """The plain value of every process, as a list by rank."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(tensors):
    """Overwrite tensors by those of rank 0, one exchange for each dtype."""
    if world_size() == 1:
        return
    tensors = list(tensors)
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in same])
        dist.broadcast(flat, 0)
        for tensor, part in zip(same, flat.split([tensor.numel() for tensor in same])):
            tensor.copy_(part.view_as(tensor))


def data_parallel(model, device):
    """The model as it is trained: over several processes gradients are averaged, with overlap."""
    if world_size() == 1:
        return model
    with warnings.catch_warnings():
        # torch 2.15 has another name for it, which 2.11 does not know
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        return DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,  # rank 0's running statistics hold, sent where needed
            gradient_as_bucket_view=True,
        )


def rank_0_first(action):
    """Call `action` on rank 0, then on the first process of each machine, then on the rest.

    However long it takes: it may be the preparation of a whole data set.
    """
    if world_size() == 1:
        return action()
    machine, local_rank = os.environ.get("GROUP_RANK", "0"), os.environ.get("LOCAL_RANK")
    store, ever = _store(), datetime.timedelta(days=7)
    if rank():
        store.wait(["prepared everywhere"], ever)
        if local_rank != "0":
            store.wait([f"prepared on {machine}"], ever)
    result = action()
    if local_rank == "0":
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
    return sorted(set(all_gather(f"{socket.gethostname()} {parent} {began}")))


def barrier():
    """Wait for all processes; if one has failed, that one speaks."""
    if world_size() > 1:
        with contextlib.suppress(RuntimeError):
            dist.barrier()


def _store():
    """The key-value store that all processes share."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=False, timeout=datetime.timedelta(seconds=5))


def first_to_fail():
    """Whether no other process has failed before this one."""
    try:
        return _store().add("failed", 1) == 1
    except (RuntimeError, KeyError, ValueError):  # the store has gone with rank 0
        return not dist.is_initialized()


def lost_peer(error):
    """Whether an error only says that another process is gone."""
    if not dist.is_initialized():
        return False
    signs = ("Connection closed", "Connection reset", "Broken pipe", "Timed out", "gloo", "NCCL")
    known = isinstance(error, dist.DistError)
    return known or isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
