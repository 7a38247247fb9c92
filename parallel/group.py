"""The process group: joining it, ranks, collectives; how a batch is cut into replica slices.

Takes the place of the threads of nn.DataParallelTable. A run of one process has no group: rank
is 0, world size is 1, and the collectives do nothing. Every process must call a collective.
"""

import contextlib
import datetime
import itertools
import os
import re
import socket
import threading
import warnings

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from parallel import interface, launch
from runtime import memory, process
from runtime.errors import InputError, cause
from runtime.process import leave, script
from runtime.terminal import complain, note

# For one collective. If a process dies, gloo notices at once, or the parent or agent ends the
# others; the timeout is for a machine that vanished. Between two collectives a process does no more
# than save a checkpoint and load some batches.
TIMEOUT = datetime.timedelta(minutes=10)
_calls = itertools.count()  # of rank_0_first


def join():
    """Join the process group that the environment describes, if any; returns the device."""
    launch.check_environment()
    device = _pick_device()
    process.limit_threads()
    if launch.joined():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        _connect(device)
    if device.type == "cpu":
        memory.keep_freed()
        note("=> No CUDA device: running on the CPU")
    if world_size() > 1:
        note(f"=> {world_size()} processes on {device.type}")
    return device


def _connect(device):
    """Make the process group; InputError names host, address and variables if that fails."""
    options = {"device_id": device} if device.type == "cuda" else {}
    try:
        if os.environ["RANK"] != "0":
            interface.wait(TIMEOUT.total_seconds())
        store, *place = next(dist.rendezvous("env://", timeout=TIMEOUT))  # rank, world size
        if several_machines():
            interface.choose(store, *place)
            threading.Thread(target=_end_with_unconnected, daemon=True).start()
        options |= {"store": store, "rank": place[0], "world_size": place[1]}
        # numbers of the host take gloo, because over nccl reading them would wait for the GPU
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT, **options)
        dist.barrier()
        if rank() == 0:
            _store().set("failed", "0")
            _store().set(_connected(), "")
    except RuntimeError as error:
        failure = interface.unreachable(reason(error))
        with contextlib.suppress(RuntimeError):
            _store().set(_connected(), failure)
        raise InputError(failure) from None


def _connected():
    """The store's key for "" once all are connected, or the sentence of one that failed to."""
    return f"connected {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"


def _end_with_unconnected():
    """In a thread: end if a process on another machine cannot connect.

    Gloo itself would wait for longer than TIMEOUT, in a call that nothing interrupts.
    """
    try:
        store = _store()
        store.wait([_connected()], 5 * TIMEOUT)
        failure = store.get(_connected()).decode()
        # a failed process on this machine prints its sentence, and the agent ends the others
        if not failure or failure.startswith(f"{socket.gethostname()} "):
            return
    except RuntimeError:  # the store lives in rank 0, which may be gone already
        failure = interface.unreachable("rank 0 has ended while the processes were connecting")
    if _local_rank() == "0":
        complain(f"{script()}: {failure}")
    leave(1)


def several_machines():
    """Whether the processes run on more than one machine, or under more than one agent."""
    return os.environ.get("LOCAL_WORLD_SIZE", "1") != os.environ.get("WORLD_SIZE", "1")


def _pick_device():
    """The CUDA device of this process, else the CPU; InputError if the device does not exist."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if torch.backends.cuda.is_built() and "MIG" not in named:
        ids = [word.strip() for word in named.split(",")] if named.strip() else []
        # CUDA ignores the first invalid id, such as -1, and all after it
        ids = ids[: next((i for i, word in enumerate(ids) if word.startswith("-")), len(ids))]
        if count < len(ids):
            raise InputError(f"CUDA_VISIBLE_DEVICES={named}, but only {count} of these exist")
    if not count:
        return torch.device("cpu")
    local = int(_local_rank()) if launch.joined() else 0
    if local >= count:
        raise InputError(
            f"local rank {local} has no CUDA device: only {count} are visible; start as many "
            "processes as there are devices"
        )
    return torch.device("cuda", local)


def rank():
    """The rank of this process. Rank 0 writes files and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def _local_rank():
    """LOCAL_RANK; "0" where it is not set, so that no process waits for a local rank 0."""
    return os.environ.get("LOCAL_RANK", "0")


def local_world_size():
    """The number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if dist.is_initialized() else 1


def all_reduce(tensor):
    """Sum a tensor over all processes, in place; returns it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_gather(value):
    """The values of all processes, by rank; any value that pickles."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


@torch.no_grad()
def broadcast(tensors):
    """Overwrite tensors with those of rank 0, in one collective for each dtype."""
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
    """The model as it is trained: DistributedDataParallel averages gradients over the processes."""
    if world_size() == 1:
        return model
    with warnings.catch_warnings():
        # torch 2.15 renamed the argument; 2.11 does not know the new name
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        return DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,  # Trainer sends rank 0's running statistics when needed
            gradient_as_bucket_view=True,
        )


def no_sync(model):
    """The context of a backward pass that only adds up gradients and exchanges none yet."""
    return model.no_sync() if world_size() > 1 else contextlib.nullcontext()


def rank_0_first(action):
    """Call `action` on rank 0, then on local rank 0 of each machine, then on all other ranks.

    Ranks wait for days if need be, because `action` may prepare a whole dataset. Without
    LOCAL_RANK, every rank but 0 counts as the first of its machine.
    """
    if world_size() == 1:
        return action()
    machine, local_rank = os.environ.get("GROUP_RANK", socket.gethostname()), _local_rank()
    store, days = _store(), datetime.timedelta(days=7)
    call = next(_calls)  # the same on all ranks
    everywhere, here = f"prepared everywhere {call}", f"prepared on {machine} {call}"
    if rank():
        store.wait([everywhere], days)
        if local_rank != "0":
            store.wait([here], days)
    result = action()
    if local_rank == "0":
        store.set(here, "1")
    if rank() == 0:
        store.set(everywhere, "1")
    return result


def agents():
    """The torchrun agents that started the processes, each as "host pid start-time": unique."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return []
    parent, began = os.getppid(), ""
    with contextlib.suppress(OSError), open(f"/proc/{parent}/stat") as file:
        began = file.read().rpartition(")")[2].split()[19]  # field starttime: in ticks since boot
    return sorted(set(all_gather(f"{socket.gethostname()} {parent} {began}")))


def barrier():
    """Wait for all processes. A process that failed is no error here: it reports its own."""
    if world_size() > 1:
        with contextlib.suppress(RuntimeError):
            dist.barrier()


def _store():
    """The key-value store of the process group; an error of torch's at once if it is gone."""
    if error := interface.refused():
        raise dist.DistNetworkError(cause(error))
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=False, timeout=datetime.timedelta(seconds=5))


def first_to_fail():
    """Whether this process is the first one that failed, as far as this machine can know."""
    try:
        return _store().add("failed", 1) == 1
    except (RuntimeError, KeyError, ValueError, TypeError):
        # no such port; or the store is gone, with rank 0 or its machine
        alone = several_machines() and _local_rank() == "0"
        return alone or not dist.is_initialized()


def reason(error):
    """The first line of an error of PyTorch's, without the place in its source."""
    return re.sub(r"\[/\S+\] |\. This is typically.*", "", str(error).splitlines()[0])


def lost_peer(error):
    """Whether an error only means that another process is gone."""
    if not dist.is_initialized():
        return False
    signs = ("Connection closed", "Connection reset", "Broken pipe", "Timed out", "gloo", "NCCL")
    known = isinstance(error, dist.DistError)
    return known or isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def split(count, parts):
    """range(count) cut into `parts` slices; the first `count % parts` are longer by one."""
    each, longer = divmod(count, parts)
    ends = [i * each + min(i, longer) for i in range(parts + 1)]
    return [slice(start, end) for start, end in zip(ends, ends[1:])]


def split_sizes(batch, replicas):
    """The sizes of the replica slices of a batch, as DataParallelTable cuts it.

    With fewer samples than replicas the list is shorter: no slice is empty, and some replicas idle.
    """
    return [part.stop - part.start for part in split(batch, replicas) if part.stop > part.start]
