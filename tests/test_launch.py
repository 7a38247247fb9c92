"""Processes as programs: started by main.py or torchrun, killed, failing, told to stop."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from support.runs import (
    NET,
    ROOT,
    difference,
    errors,
    finish,
    log,
    nobody_left,
    results,
    same,
    start,
)

import detect
import evaluate
import main
import opts
from parallel import launch
from runtime import terminal
from runtime.errors import InputError
from storage import atomic

RUN = NET + " -nGPU 3 -nEpochs 2 -manualSeed 2 -precision double"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


@pytest.fixture
def one(cifar, tmp_path, monkeypatch):
    """The results of RUN in one process."""
    monkeypatch.chdir(tmp_path)
    main.main([*RUN.split(), "-data", cifar, "-save", "one"])
    return results("one", 2)


def agree(one, other):
    # the sums of two float64 gradients, in another order: a few roundings
    assert difference(one, other) < 1e-12
    assert one[1] == other[1]
    for ours, theirs in zip(one[2], other[2]):
        assert ours["test"] == theirs["test"]
        assert ours["train"] == pytest.approx(theirs["train"], rel=1e-12)


def children(process):
    path = f"/proc/{process.pid}/task/{process.pid}/children"
    with open(path) as file:
        return [int(pid) for pid in file.read().split()]


def until(process, beginning):
    for line in process.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.slow  # test_metrics.py has the stop of two processes, test_detect_runs.py a run
def test_stopped_in_two_processes_resumed_in_two(one, cifar, tmp_path):
    """The parent alone is told to stop, as some schedulers do; only the first process speaks."""
    process = start(RUN + " -nProcs 2 -save two", cifar, tmp_path)
    until(process, " | Epoch: [1][2/5]")
    process.terminate()
    _, error = finish(process, 143)
    assert error.startswith("main.py: interrupted by SIGTERM in ") and error.count("\n") == 1
    assert nobody_left(process.pid, 1)
    lines, error = finish(start(RUN + " -nProcs 2 -save two -resume two", cifar, tmp_path))
    assert error == "" and "=> 2 processes on cpu" in lines
    assert sum(line.startswith(" * Finished top1") for line in lines) == 1
    agree(one, results(tmp_path / "two", 2))
    assert not any(name.startswith("module.") for name in one[0])


def test_an_error_in_one_process_ends_all(photos, tmp_path):
    data = str(tmp_path / "broken")
    shutil.copytree(photos, data)
    for name in os.listdir(os.path.join(data, "train", "plain")):
        with open(os.path.join(data, "train", "plain", name), "wb") as file:
            file.write(b"not a picture")
    command = "-netType resnet -depth 18 -batchSize 12 -trainCrop 64 -nGPU 2 -nProcs 2 -nThreads 2"
    process = start(command, data, tmp_path)
    _, error = finish(process, 1)
    assert error.count("\n") == 1 and f"cannot read the image '{data}/train/plain/" in error
    assert nobody_left(process.pid, 1)


@pytest.mark.slow
def test_skipped_images_are_the_same_for_any_number_of_processes(photos, tmp_path, monkeypatch):
    """Slices that lose images are shorter; one of these loses all of them."""
    data = str(tmp_path / "broken")
    shutil.copytree(photos, data)
    for name in ("0.jpg", "2.jpg", "4.jpg"):
        with open(os.path.join(data, "train", "plain", name), "wb") as file:
            file.write(b"not a picture")
    command = (
        "-netType resnet -depth 18 -batchSize 5 -trainCrop 64 -nGPU 4 -LR 0.001 -precision double "
    )
    command += "-skipCorrupt true -nEpochs 2 -manualSeed 4 -save "
    found = []
    for processes in (1, 2, 3):
        words = f"{command}{processes} -nProcs {processes} -nThreads {processes - 1}"
        lines, error = finish(start(words, data, tmp_path), timeout=400)
        skipped = sorted(line.split("(")[0] for line in lines if line.startswith(" | skipped"))
        assert len(skipped) == 6 and error == ""
        found.append((results(tmp_path / str(processes), 2), skipped))
    for result, skipped in found[1:]:
        assert skipped == found[0][1]
        agree(found[0][0], result)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["plain/0.jpg", "striped/3.jpg"])  # read by rank 0, by rank 1
def test_an_error_in_the_test_of_one_process_does_not_lose_the_training(photos, tmp_path, place):
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    command = "-netType resnet -depth 18 -batchSize 8 -trainCrop 64 -nGPU 2 -nProcs 2 -LR 0.001 "
    command += "-nEpochs 1 -save "
    finish(start(command + "straight", data, tmp_path), timeout=400)
    whole = (data / "val" / place).read_bytes()
    (data / "val" / place).write_bytes(b"no picture")
    _, error = finish(start(command + "failed", data, tmp_path), 1, timeout=400)
    assert error.count("\n") == 1 and place in error
    (data / "val" / place).write_bytes(whole)
    lines, _ = finish(start("-resume failed -nProcs 2", data, tmp_path), timeout=400)
    assert not any(line.startswith("=> Training epoch") for line in lines)
    same(results(tmp_path / "straight", 1), results(tmp_path / "failed", 1))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_told_once(cifar, tmp_path):
    process = start(NET + " -nGPU 2 -nProcs 2 -LR 1e30", cifar, tmp_path)
    _, error = finish(process, 1)
    assert error.count("\n") == 1 and "iteration" in error
    assert nobody_left(process.pid, 1)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["process", "parent"])
def test_a_killed_process_ends_all(cifar, tmp_path, victim):
    process = start(NET + " -nGPU 2 -nProcs 2 -nEpochs 10000", cifar, tmp_path)
    until(process, " | Epoch: [3]")  # the save of epoch 2 has begun, so that of epoch 1 is whole
    os.kill(process.pid if victim == "parent" else children(process)[1], signal.SIGKILL)
    killed = time.monotonic()
    _, error = finish(process, -9 if victim == "parent" else 137)
    assert nobody_left(process.pid, 1) and time.monotonic() - killed < 3
    if victim == "process":
        words = "main.py: process 1 was killed by SIGKILL, perhaps out of memory\n"
        assert error == words
    assert atomic.load(tmp_path / "checkpoints" / "latest.pth")["epoch"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_from_the_keyboard(cifar, tmp_path, times):
    process = start(NET + " -nGPU 2 -nProcs 2 -nEpochs 10000", cifar, tmp_path)
    until(process, " | Epoch: [2]")
    for _ in range(times):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.1)
    _, error = finish(process, 130)
    assert error.count("\n") <= times and ("interrupted by SIGINT" in error or times == 2)
    assert nobody_left(process.pid, 1)


def test_how_many(monkeypatch, capsys):
    def processes(command, devices):
        monkeypatch.setattr("torch.cuda.is_available", lambda: devices > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda: devices)
        opt = opts.parse(f"-dataset cifar10 -depth 20 {command}".split())
        return launch.processes(opt.given.get("nProcs"), main.replicas(opt))

    assert processes("", 8) == processes("-nGPU 8", 0) == processes("-nGPU 8", 1) == 1
    assert processes("-nGPU 8", 4) == processes("-nGPU 4", 8) == 4
    assert processes("-nGPU 8 -nProcs 2", 4) == processes("-nGPU 8 -nProcs 2", 0) == 2
    assert processes("-nGPU 2 -nProcs 3", 0) == 2
    assert capsys.readouterr().err.startswith(
        "=> -nProcs 3: only 2 are started, one for each replica"
    )
    with pytest.raises(InputError, match="-nProcs 4, but there are 2 CUDA devices"):
        processes("-nGPU 8 -nProcs 4", 2)
    set_environment(monkeypatch, WHOLE)
    assert processes("-nGPU 8", 4) == 1


WHOLE = dict(
    pair.split("=")
    for pair in "RANK=1 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 "
    "MASTER_PORT=29500".split()
)
LACKS = "RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT belong together, but this process lacks"


def wrong_environments():
    """Pairs: the variables of a process, which are wrong; what is said."""
    for master in ({}, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}):
        for name, other in (("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")):
            for value in ("abc", "0", "1", "-1", "2", ""):
                yield master | {name: value}, f"{LACKS} .*{other}.*: set all four"
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        rest = {key: value for key, value in WHOLE.items() if key != name}
        for part in (rest, rest | {name: ""}):
            yield part, f"{LACKS} {name}: set all four, as torchrun does, or unset all"
    for name in sorted(WHOLE.keys() - {"MASTER_ADDR"}):  # of one order: xdist compares workers
        for value in ("abc", "-1", "1.5", " 1", "01", "1" * 10, "\u0663"):
            yield WHOLE | {name: value}, f"{name}={value}: it should be a whole number"
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        yield WHOLE | {name: ""}, f"{name}=: it should be a whole number"
    for rank, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        for number, count in (("2", "2"), ("3", "2"), ("0", "0")):
            values = {rank: number, size: count}
            yield WHOLE | values, f"{rank}={number} .*{size}={count} .*: ranks count from 0"
    yield WHOLE | {"LOCAL_WORLD_SIZE": "5"}, "LOCAL_WORLD_SIZE=5 .* local size is at most WORLD_S"
    for port in ("0", "65536"):
        yield WHOLE | {"MASTER_PORT": port}, f"MASTER_PORT={port}: .* ports are 1 to 65535"


def set_environment(monkeypatch, variables):
    for name in WHOLE:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("variables, error", list(wrong_environments()))
def test_a_wrong_environment_is_refused(monkeypatch, variables, error):
    set_environment(monkeypatch, variables)
    with pytest.raises(InputError, match=error) as stop:
        launch.check_environment()
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize(
    "variables, joined, first, first_here",
    [
        ({}, False, True, True),
        (WHOLE, True, False, False),
        (WHOLE | {"LOCAL_RANK": "0"}, True, False, True),
        ({name: WHOLE[name] for name in launch.VARIABLES}, True, False, True),  # as of srun
        (WHOLE | {"RANK": "0", "LOCAL_RANK": "0"}, True, True, True),
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "0", "MASTER_ADDR": "x"}, False, True, True),
    ],
)
def test_an_environment_that_is_right(monkeypatch, variables, joined, first, first_here):
    set_environment(monkeypatch, variables)
    launch.check_environment()
    assert launch.joined() == joined
    assert [terminal.is_rank_0(), terminal.is_rank_0("LOCAL_RANK")] == [first, first_here]


def cluster(kind, rank, size, local, local_size, **others):
    """The variables of a process of srun, or of mpirun ("openmpi", "mpich")."""
    values = {
        "openmpi": {
            "OMPI_COMM_WORLD_RANK": rank,
            "OMPI_COMM_WORLD_SIZE": size,
            "OMPI_COMM_WORLD_LOCAL_RANK": local,
            "OMPI_COMM_WORLD_LOCAL_SIZE": local_size,
        },
        "mpich": {
            "PMI_RANK": rank,
            "PMI_SIZE": size,
            "MPI_LOCALRANKID": local,
            "MPI_LOCALNRANKS": local_size,
        },
        "srun": {
            "SLURM_PROCID": rank,
            "SLURM_STEP_NUM_TASKS": size,
            "SLURM_LOCALID": local,
            "SLURM_STEP_TASKS_PER_NODE": local_size,
            "SLURM_NODEID": 0,
        },
    }[kind]
    return {name: str(value) for name, value in {**values, **others}.items()}


KINDS = ["openmpi", "mpich", "srun"]
# a batch script, and the shell of salloc: one process, whatever the number of tasks
BATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_TASKS_PER_NODE": "2(x2)"}
BATCH |= {
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "n[1-2]",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [{}, BATCH])
def test_srun_and_mpirun_on_one_machine(kind, batch):
    found = [launch.ranks(batch | cluster(kind, rank, 3, rank, 3)) for rank in range(3)]
    for rank, one in enumerate(found):
        assert 15000 <= int(one["MASTER_PORT"]) < 30000
        assert one == {
            **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "3"},
            **{"LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1"},
            "MASTER_PORT": found[0]["MASTER_PORT"],
        }


@pytest.mark.parametrize(
    "environment",
    [
        {},
        BATCH,
        {name: BATCH[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS")},
        BATCH | cluster("srun", 0, 4, 0, 4, SLURM_PTY_PORT=1, SLURM_STEP_ID=0),
        *(BATCH | cluster(kind, 0, 1, 0, 1) for kind in KINDS),
        *(cluster(kind, 1, 2, 1, 2, **WHOLE) for kind in KINDS),  # torch's names win
        *(cluster(kind, 1, 2, 1, 2, RANK=0) for kind in KINDS),
        {name: value for name, value in cluster("srun", 1, 2, 1, 2).items() if "PROC" not in name},
    ],
)
def test_what_is_none_of_several_processes_of_srun_and_mpirun(environment):
    assert launch.ranks(environment) == {}


@pytest.mark.parametrize(
    "hosts, master",
    [
        ("one,two", "one"),
        ("gpu-[007-009,12],other1", "gpu-007"),
        ("n[3,5]", "n3"),
        ("a.b.org,n[1-2]", "a.b.org"),
        ("n[1-2]-ib", None),
        ("r[1-2]n[1-3]", None),
        ("", None),
    ],
)
def test_srun_on_several_machines(hosts, master):
    tasks = {"SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_STEP_NODELIST": hosts}
    last = cluster("srun", 4, 5, 0, 0, **tasks, SLURM_NODEID=2)
    assert launch.ranks({**last, "MASTER_ADDR": "given"})["MASTER_ADDR"] == "given"
    if master:
        found = launch.ranks(last)
        assert (found["MASTER_ADDR"], found["LOCAL_WORLD_SIZE"]) == (master, "1")
        before = launch.ranks({**last, "SLURM_NODEID": "1"})
        assert before["LOCAL_WORLD_SIZE"] == "2"
    else:
        with pytest.raises(InputError, match="MASTER_ADDR is not set: give all of them the host"):
            launch.ranks(last)


@pytest.mark.parametrize("kind", ["openmpi", "mpich"])
def test_mpirun_on_several_machines(kind):
    environment = cluster(kind, 4, 5, 0, 1) | {"SLURM_STEP_NODELIST": "mpirun-was-called-here"}
    with pytest.raises(InputError, match="MASTER_ADDR is not set"):
        launch.ranks(environment)
    given = launch.ranks(environment | {"MASTER_ADDR": "one", "MASTER_PORT": "5"})
    assert (given["MASTER_ADDR"], given["MASTER_PORT"], given["RANK"]) == ("one", "5", "4")


def test_runs_of_one_machine_have_ports_of_their_own():
    def port(**job):
        return launch.ranks(cluster("srun", 0, 2, 0, 2, **job))["MASTER_PORT"]

    jobs = [{"SLURM_JOB_ID": job, "SLURM_STEP_ID": step} for job in range(3) for step in range(3)]
    assert len({port(**job) for job in jobs}) == 9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("devices, local", [("0,1", "1"), ("1", None), ("", "1")])
def test_a_process_that_sees_one_device_takes_it(kind, devices, local):
    environment = cluster(kind, 1, 2, 1, 2, CUDA_VISIBLE_DEVICES=devices)
    assert launch.ranks(environment).get("LOCAL_RANK") == local


def test_a_call_from_python_under_srun_is_one_of_several(monkeypatch):
    monkeypatch.setattr(os, "environ", cluster("srun", 1, 2, 1, 2))
    assert launch.processes(2, 2) == 1 and launch.joined()


@pytest.mark.parametrize("script", ["main.py", "detect.py", "evaluate.py"])
def test_a_wrong_environment_is_told_before_packages_are_imported(script):
    done = subprocess.run(
        [sys.executable, "-S", os.path.join(ROOT, script), "-depht", "3"],
        env={"RANK": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.startswith(f"{script}: {LACKS}")
    assert done.stderr.count("\n") == 1


def test_the_program_that_is_started_is_the_one_that_was_called(
    monkeypatch, tmp_path, cifar, photos
):
    """From Python too, whatever the running script is called; a run that saves nothing says so."""
    calls = []

    def run(*words):
        calls.append(words)
        raise SystemExit

    monkeypatch.setattr(launch, "run", run)
    (tmp_path / "net.pth").touch()
    several = ["-nGPU", "2", "-nProcs", "2", "-save", "there"]
    net = str(tmp_path / "net.pth")
    for program, words in (
        (main, [*NET.split(), "-data", cifar, *several]),
        (main, [*NET.split(), "-data", cifar, *several, "-testOnly", "true"]),
        (detect, ["-dataset", "digits", "-retrain", net, *several]),
        (detect, ["-dataset", "digits", "-retrain", net, *several, "-testOnly", "true"]),
        (evaluate, [net, "-data", photos, "-nProcs", "2"]),
    ):
        monkeypatch.setattr(sys, "argv", ["/elsewhere/train.py"])  # a name that the root has
        with pytest.raises(SystemExit):
            program.main(words)
    assert [(script, *folder) for script, _, _, *folder in calls] == [
        *[("main.py", "there"), ("main.py", None)],
        *[("detect.py", "there"), ("detect.py", None), ("evaluate.py",)],
    ]
    monkeypatch.setattr(launch.subprocess, "Popen", lambda command, env: command)
    command = launch._start("evaluate.py", ["-flip", "true"], 1, 2, 29500)
    assert command == [sys.executable, os.path.join(ROOT, "evaluate.py"), "-flip", "true"]


def test_a_signal_before_the_first_iteration_promises_no_save(monkeypatch, capsys):
    """The parent does not know whether its processes have begun."""
    said = []

    class Child:
        state = None

        def poll(self):
            return self.state

        def send_signal(self, signum):
            self.state = -signum

    monkeypatch.setattr(launch, "complain", said.append)
    assert launch._watch([Child()], [signal.SIGTERM], "there") == 143
    [line] = said
    assert line.endswith(
        ": SIGTERM: the run finishes its iteration and saves, if it is in one, and ends"
    )
    assert launch._watch([Child()], [signal.SIGTERM], None) == 143 and len(said) == 1


def test_a_resumed_run_has_the_replicas_of_the_checkpoint(cifar, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main.main([*RUN.split(), "-data", cifar, "-nEpochs", "1"])
    opt = opts.parse("-dataset cifar10 -depth 20 -resume checkpoints -nProcs 2".split())
    assert launch.processes(opt.given.get("nProcs"), main.replicas(opt)) == 2


def torchrun(folder, data, node, port, command, *more, **environment):
    """One agent of two, with one process."""
    agent = f"--nnodes 2 --nproc-per-node 1 --node-rank {node} --master-port {port}".split()
    return start(command, data, folder, before=[*TORCHRUN, *(more or agent)], **environment)


def free_port():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.slow
def test_torchrun_on_two_nodes(one, cifar, tmp_path):
    port = free_port()
    nodes = [torchrun(tmp_path, cifar, node, port, RUN + " -save two") for node in (0, 1)]
    lines, _ = finish(nodes[0])
    others, _ = finish(nodes[1])
    assert "=> 2 processes on cpu" in lines and others == []
    agree(one, results(tmp_path / "two", 2))


def test_an_option_error_is_told_once_under_torchrun(cifar, tmp_path):
    """Even where the rank that tells it starts late: torchrun kills the others once one ended."""
    late = tmp_path / "late.py"
    late.write_text(
        "import os, runpy, sys, time\n"
        "time.sleep(3 * (os.environ['LOCAL_RANK'] == '0'))\n"
        "sys.argv.pop(0)\n"
        "sys.path.insert(0, os.path.dirname(sys.argv[0]))\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    agent = ["--standalone", "--nproc-per-node", "2", str(late)]
    process = torchrun(tmp_path, cifar, 0, 0, RUN + " -depht 8", *agent)
    error = errors(process.communicate(timeout=100)[1])
    assert error.count("main.py: unknown option -depht") == 1 and process.returncode


@pytest.mark.slow
def test_elastic(one, cifar, tmp_path):
    """Two nodes of one process, one of them is lost for good: the run goes on with the other."""
    command = RUN.replace("-nEpochs 2", "-nEpochs 60") + " -saveEvery 1e-9 -save "
    main.main([*(command + "straight").split(), "-data", cifar])
    rendezvous = (
        f"--nnodes 1:2 --nproc-per-node 1 --max-restarts 3 --rdzv-backend c10d --rdzv-id drill "
        f"--rdzv-endpoint 127.0.0.1:{free_port()} "
        "--rdzv-conf last_call_timeout=8,keep_alive_interval=1,keep_alive_max_attempt=2"
    ).split()
    first = torchrun(tmp_path, cifar, 0, 0, command + "elastic", *rendezvous)
    time.sleep(2)
    second = torchrun(tmp_path, cifar, 0, 0, command + "elastic", *rendezvous)
    until(first, " | Epoch: [3]")
    workers = children(second)
    second.kill()
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    lines, _ = finish(first, timeout=200)
    assert "=> Loading checkpoint elastic/latest.pth" in lines
    # said at the start; after the restart there was one process
    assert lines.count("=> 2 processes on cpu") == 1
    agree(results("straight", 60), results("elastic", 60))
    assert [line["epoch"] for line in log("elastic")] == list(range(1, 61))
