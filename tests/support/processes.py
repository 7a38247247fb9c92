"""Test support: runs a function in a group of gloo processes and returns rank 0's result."""

import multiprocessing
import os
import socket

import numpy as np
import torch

import dataloader
import opts
from dataloader import Batch
from models.blocks import set_recompute
from models.resnet import resnet
from parallel import group
from parallel.group import split, split_sizes
from runtime.process import leave
from support import torch7
from train import setup

DPT = [(1, 8), (2, 8), (3, 8), (3, 7), (3, 2)]  # replicas, batch
RUNS = [(15, "false"), (15, "true"), (16, "false")]  # last batches of 5, 5, 3 for 8 replicas


def torchrun(rank, count, port):
    """The variables that torchrun sets for a process, all on this machine."""
    here = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
    return here | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def srun(rank, count, port):
    """The same of srun, which has no address and port; the job's number makes the port differ."""
    step = {"SLURM_JOB_ID": port, "SLURM_STEP_ID": 0, "SLURM_STEP_TASKS_PER_NODE": count}
    return step | {"SLURM_PROCID": rank, "SLURM_STEP_NUM_TASKS": count, "SLURM_LOCALID": rank}


def bare(rank, count, port):
    """The four that have to be; each process counts as the first of a machine."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: torchrun(rank, count, port)[name] for name in names}


def together(count, data, folder, experiment=None, starter=torchrun):
    """Rank 0's result of experiment(data, folder) in `count` processes; default: `experiments`.

    starter: gives the environment of each.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    answer = os.path.join(folder, f"{count}.pth")
    words = (data, answer, experiment)
    environments = [starter(rank, count, port) for rank in range(count)]
    processes = [
        spawn.Process(target=_process, args=(each, *words), daemon=True) for each in environments
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
        assert process.exitcode == 0
    return torch.load(answer)


def _process(environment, data, answer, experiment):
    torch.set_num_threads(1)
    os.environ.update({name: str(value) for name, value in environment.items()})
    group.join()
    result = (experiment or experiments)(data, os.path.dirname(answer))
    if group.rank() == 0:
        torch.save(result, answer)
    leave(0)  # as main.py's processes do: the group's threads may not outlast the interpreter


def experiments(data, folder):
    """All results that must not depend on the number of processes."""
    result = {}
    for replicas, n in DPT if group.world_size() < 4 else []:  # at most 3 replicas were recorded
        for accumulate in ("false", "true"):
            case = ("dpt", replicas, n, accumulate)
            result[case] = data_parallel_table(replicas, n, accumulate)
    for size, optnet in RUNS:
        result["run", size, optnet] = run(data, folder, f"-batchSize {size} -optnet {optnet}")
    return result


def options(command, data="none"):
    return opts.parse(f"-netType resnet -dataset cifar10 -depth 8 -data {data} {command}".split())


def data_parallel_table(replicas, n, accumulate):
    """Two training steps with the net and batches of dpt.npz; -accumulate true or false."""
    net = torch7.fill_net(
        resnet(8, 10, "cifar", "A"),
        torch7.facts()["resnet8_cifar10"]["parameters"],
        np.zeros(240),
        np.ones(240),
    )
    opt = options(f"-nGPU {replicas} -accumulate {accumulate} -LR 0.1 -weightDecay 5e-4")
    ours = setup(opt, net, torch.device("cpu"))
    net.train()
    found = {}
    for step in (1, 2):
        input, target = torch7.batch((n, 3, 32, 32), 10, step)
        sizes = split_sizes(n, replicas)
        slices = [sizes[part] for part in split(replicas, group.world_size())]
        start = sum(map(sum, slices[: group.rank()]))
        mine = slice(start, start + sum(slices[group.rank()]))
        image = input[mine] if len(target[mine]) else torch.zeros_like(input[:1])
        output, loss = ours._step(Batch(image, target[mine], slices))
        found[f"out{step}"] = torch.cat(group.all_gather(output))
        found[f"loss{step}"] = group.all_reduce(loss) / n
        found[f"grad{step}"] = torch7.flat([p.grad for p in net.parameters()])[::75]
        found[f"params{step}"] = torch7.flat(net.parameters())[::75]
    group.broadcast([*net.parameters(), *net.buffers()])
    norms = torch7.norms(net)
    found["bn_running_mean_gpu1"] = torch.cat([norm.running_mean for norm in norms])
    found["bn_running_var_gpu1"] = torch.cat([norm.running_var for norm in norms])
    found["out_eval_gpu1"] = net.eval()(torch7.batch((n, 3, 32, 32), 10, 1)[0]).detach()
    return {name: torch.as_tensor(value) for name, value in found.items()}


def run(data, folder, command):
    """Two epochs of 8 replicas in float64: metrics, parameters, momentum, running statistics."""
    torch.manual_seed(1)
    net = resnet(8, 10, "cifar", "A").double()
    command = f"-nGPU 8 -LR 0.05 -precision double -gen {folder}/gen {command}"
    opt = options(command, data)
    set_recompute(net, opt.optnet)
    ours = setup(opt, net, torch.device("cpu"))
    train, val = dataloader.create(opt, torch.device("cpu"))
    means = []
    for epoch in (1, 2):
        done, test = ours.train(epoch, train), ours.test(epoch, val)
        numbers = [done.top1, done.top5, done.mean_loss, test.top1, test.top5]
        means.append(torch.tensor(numbers, dtype=torch.float64))
    momentum = {f"m {name}": value for name, value in ours.state()["momentum"].items()}
    return {"means": torch.stack(means), **net.state_dict(), **momentum}
