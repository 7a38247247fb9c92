"""srun and mpirun: the variables of the processes that they start, as torchrun would set them."""

import re
import zlib

from runtime.errors import InputError

# Rank, world size, local rank, local world size. MPI's come first: its daemons are tasks of srun.
# SLURM_NTASKS proves nothing: a batch script has it too, and runs once.
TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
OPEN_MPI = tuple(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
MPICH = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")  # and Intel's MPI
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")


def ranks(environment):
    """torch's variables for a process that srun or mpirun started as one of several; else {}."""
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return {}
    names = next((n for n in (OPEN_MPI, MPICH, SLURM) if environment.keys() >= {*n}), None)
    if not names or environment[names[1]] == "1":
        return {}
    if names == SLURM and "SLURM_PTY_PORT" in environment:  # the shell of `srun --pty bash`
        return {}
    found = dict(zip(TORCH, (environment[name] for name in names)))
    hosts = ""
    if names == SLURM:
        hosts = environment.get("SLURM_STEP_NODELIST", "")
        found["LOCAL_WORLD_SIZE"] = _tasks(
            found["LOCAL_WORLD_SIZE"], environment.get("SLURM_NODEID", "0")
        )
    found["MASTER_ADDR"] = environment.get("MASTER_ADDR") or _master(found, hosts)
    # the same in all processes of this run, but not in those of other runs on the machine
    job = [environment.get(name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "PMIX_NAMESPACE")]
    found["MASTER_PORT"] = str(15000 + zlib.crc32(repr(job).encode()) % 15000)
    devices = environment.get("CUDA_VISIBLE_DEVICES")
    if devices and "," not in devices:  # one, for this process alone
        del found["LOCAL_RANK"]
    return {name: environment.get(name) or value for name, value in found.items()}


def _tasks(per_node, node):
    """The number of tasks on the n-th node, from Slurm's "2(x3),1": 2 on each of three, then 1."""
    counts = []
    for tasks, nodes in re.findall(r"(\d+)(?:\(x(\d+)\))?", per_node):
        counts += [tasks] * int(nodes or 1)
    return counts[int(node)]


def _master(found, hosts):
    """The host of rank 0: this one, or the first of Slurm's list, as in "node[07-09,12],other1"."""
    if found["WORLD_SIZE"] == found["LOCAL_WORLD_SIZE"]:
        return "127.0.0.1"
    first = re.match(r"([\w.-]+)(?:\[(\d+)[\d,-]*\])?(?:,|$)", hosts)
    if not first:
        raise InputError(
            f"one of {found['WORLD_SIZE']} processes on several machines, but MASTER_ADDR is not "
            "set: give all of them the host name of rank 0's machine, by `export MASTER_ADDR=HOST` "
            "and with Open MPI `mpirun -x MASTER_ADDR`"
        )
    return first[1] + (first[2] or "")
