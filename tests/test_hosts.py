"""Two machines: they find each other; a wire is cut, a machine stands still."""

import contextlib
import os
import signal
import socket
import time

import pytest
from support import hosts
from support.runs import NET, ROOT, difference, finish, log, nobody_left, results, start

import main
from parallel import group, interface
from runtime.errors import InputError

RUN = NET + " -nGPU 2 -nEpochs 2 -manualSeed 2 -precision double"
LONG = RUN.replace("-nEpochs 2", "-nEpochs 12") + " -saveEvery 1e-9"
TIMEOUT = 20  # seconds, in place of ten minutes (parallel/group.py)
AGENT = (
    "--nnodes 1:2 --nproc-per-node 1 --max-restarts 3 --rdzv-backend c10d --rdzv-id drill "
    "--rdzv-endpoint one:29510 "
    "--rdzv-conf last_call_timeout=12,keep_alive_interval=1,keep_alive_max_attempt=3"
)


@pytest.fixture
def pair(tmp_path):
    try:
        with hosts.two(tmp_path) as found:
            yield found
    except OSError as error:
        pytest.skip(f"not run: no network namespaces can be made here: {error}")


@pytest.fixture
def impatient(tmp_path):
    """main.py with a shorter TIMEOUT."""
    path = tmp_path / "impatient.py"
    path.write_text(
        f"import datetime, sys\nsys.path.insert(0, {ROOT!r})\nfrom parallel import group, guard\n"
        f"group.TIMEOUT = datetime.timedelta(seconds={TIMEOUT})\n"
        "import main\nguard.guard(main.main)\n"
    )
    return str(path)


@pytest.mark.slow
def test_machines_whose_own_names_are_loopback_addresses(pair, cifar, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main.main([*RUN.split(), "-data", cifar, "-save", "one"])
    processes = [hosts.rank(pair[n], n, RUN + " -save two", cifar, tmp_path) for n in (0, 1)]
    lines, error = finish(processes[0])
    assert "=> 2 processes on cpu" in lines and "main.py" not in error
    assert "main.py" not in finish(processes[1])[1]
    assert difference(results("one", 2), results("two", 2)) < 1e-12


def test_the_interface_of_an_address():
    """As far as it can be known where a test runs: the loopback device's."""
    names = [interface._holder(address) for address in ("127.0.0.1", "192.0.2.1")]
    assert names == ["lo", None]


def test_no_way_to_the_master(monkeypatch):
    """One sentence that names host, address and the variables."""
    monkeypatch.setenv("MASTER_ADDR", "no.such.host.invalid")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    with pytest.raises(InputError) as error:
        interface.route("no.such.host.invalid", "29500")
    text = str(error.value)
    assert text.startswith(f"{os.uname().nodename} cannot connect") and "\n" not in text
    assert "MASTER_ADDR=no.such.host.invalid MASTER_PORT=29500" in text
    assert "GLOO_SOCKET_IFNAME=eth7" in text


@pytest.fixture
def patient(monkeypatch):
    """Time that passes in sleep only; MASTER_ADDR and MASTER_PORT."""
    clock = [0.0]
    monkeypatch.setattr(interface.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(interface.time, "sleep", lambda s: clock.__setitem__(0, clock[0] + s))
    monkeypatch.setenv("MASTER_ADDR", "master-0")
    monkeypatch.setenv("MASTER_PORT", "29500")
    return clock


LATE = [
    socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
    ConnectionRefusedError(111, "Connection refused"),
    OSError(113, "No route to host"),
    TimeoutError("timed out"),
]


@pytest.mark.parametrize("error", LATE, ids=str)
def test_a_master_that_comes_later_is_waited_for(patient, monkeypatch, capsys, error):
    """Before its name exists, and before it listens."""
    calls = []

    def connect(place, timeout):
        calls.append(place)
        if patient[0] < 400:
            raise error
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", connect)
    interface.wait(600)
    assert set(calls) == {("master-0", 29500)} and 400 <= patient[0] < 410
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"=> waiting for rank 0 for 10 minutes: {error.strerror or error}"


@pytest.mark.parametrize("error", LATE, ids=str)
def test_a_master_that_never_comes(patient, monkeypatch, capsys, error):
    def connect(place, timeout):
        raise error

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(InputError, match="MASTER_ADDR=master-0 MASTER_PORT=29500: [A-Z]|timed"):
        interface.wait(600)
    assert 600 < patient[0] < 610
    monkeypatch.setenv("RANK", "1")
    group.first_to_fail()  # which asks the store: no frames of torch's C++
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("name", ["a..b", "x" * 70])
def test_what_cannot_be_a_name_is_not_waited_for(patient, monkeypatch, name):
    monkeypatch.setenv("MASTER_ADDR", name)
    with pytest.raises(InputError, match=f"MASTER_ADDR={name} MASTER_PORT=29500: not a host name"):
        interface.wait(600)
    assert not patient[0]


def test_rank_0_is_gone_before_its_sentence_was_read(monkeypatch, capsys):
    """The others still name host, address and variables: the store went with rank 0."""

    def gone():
        raise RuntimeError("Connection reset by peer")

    monkeypatch.setenv("MASTER_ADDR", "one")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    monkeypatch.setattr(group, "_store", gone)
    statuses = []
    monkeypatch.setattr(group, "leave", statuses.append)
    group._end_with_unconnected()
    (line,) = capsys.readouterr().err.splitlines()
    assert statuses == [1] and "rank 0 has ended while the processes were connecting" in line
    assert f"{os.uname().nodename} cannot connect" in line and "GLOO_SOCKET_IFNAME=eth7" in line
    assert "MASTER_ADDR=one MASTER_PORT=29500" in line


def ended(process, seconds):
    """(status, seconds that it took, lines on stderr of main.py itself) of one that ends."""
    began = time.monotonic()
    _, error = process.communicate(timeout=seconds)
    said = [line for line in error.splitlines() if line.startswith("main.py: ")]
    assert nobody_left(process.pid, 40)
    return process.returncode, time.monotonic() - began, said


@pytest.mark.slow
def test_an_interface_that_leads_nowhere(pair, cifar, tmp_path, impatient):
    """The user's choice stands; what it leads to is said in one sentence, with its name."""
    processes = [
        hosts.rank(pair[n], n, RUN, cifar, tmp_path, program=impatient, GLOO_SOCKET_IFNAME="lo")
        for n in (0, 1)
    ]
    found = [ended(process, 4 * TIMEOUT) for process in processes]
    said = [line for _, _, lines in found for line in lines]
    assert [status for status, _, _ in found] == [1, 1] and 1 <= len(said) <= 2
    for line in said:
        assert "cannot connect to the other processes, MASTER_ADDR=one MASTER_PORT=29500" in line
        assert "GLOO_SOCKET_IFNAME=lo" in line
        assert line.startswith(("main.py: one cannot", "main.py: two cannot"))
    print(f"\nwrong interface: both ended after {max(seconds for _, seconds, _ in found):.0f} s")


def until(process, beginning):
    for line in process.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.slow
def test_the_wire_is_cut(pair, cifar, tmp_path, impatient):
    """Both sides end, with a sentence each; what is on disk goes on, as if nothing had been."""
    command = LONG + " -save run"
    processes = [
        hosts.rank(pair[n], n, command, cifar, tmp_path, program=impatient) for n in (0, 1)
    ]
    until(processes[0], " | Epoch: [3]")
    pair[0].do("ip link set wire0 down")
    found = [ended(process, 4 * TIMEOUT) for process in processes]
    for n, (status, _, said) in enumerate(found):
        assert status == 1 and len(said) == 1 and f"rank {n} on" in said[0], said
        assert "lost the other processes" in said[0]
    resumed_equals_straight(command, cifar, tmp_path)
    print(f"\nwire cut: both ended after {max(seconds for _, seconds, _ in found):.0f} s")


def resumed_equals_straight(command, data, folder):
    """Resume in one process; assert that the result is an undisturbed run's."""
    finish(start(command + " -resume run", data, folder), timeout=300)
    finish(start(command.replace("-save run", "-save straight"), data, folder), timeout=300)
    equal(folder)


def equal(folder):
    one, other = (results(folder / name, 12) for name in ("straight", "run"))
    assert difference(one, other) < 1e-12
    assert [line["epoch"] for line in log(folder / "run")] == list(range(1, 13))


def children(pid):
    """The process ids of the children that live; a zombie has ended."""
    found = []
    with (
        contextlib.suppress(FileNotFoundError, ProcessLookupError),
        open(f"/proc/{pid}/task/{pid}/children") as file,
    ):
        found = [int(child) for child in file.read().split()]
    return [child for child in found if os.path.exists(f"/proc/{child}/exe")]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut", "stopped"])
def test_elastic(pair, cifar, tmp_path, impatient, how):
    """The wire is cut, or one machine stands still for longer than TIMEOUT: the other goes on."""
    command = LONG + " -save run"
    first, second = (
        hosts.torchrun(host, command, cifar, tmp_path, AGENT, program=impatient) for host in pair
    )
    until(first, "=> Training epoch # 3")
    machine = [second.pid, *children(second.pid)]
    if how == "cut":
        pair[0].do("ip link set wire0 down")
    else:
        for pid in machine:
            os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    until(first, "=> Loading checkpoint run/latest.pth")
    took = time.monotonic() - began
    finish(first, timeout=200)
    for pid in machine:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    for _ in range(30 * TIMEOUT):  # its agent waits for minutes, its part of the run does not
        if not children(second.pid):
            break
        time.sleep(0.1)
    assert not children(second.pid)
    second.kill()
    said = second.communicate()[1]
    # under an agent that was stopped it may also end by its agent's SIGTERM
    assert said.count("main.py: rank 1 on two lost the other processes") == 1 or how == "stopped"
    finish(start(command.replace("-save run", "-save straight"), cifar, tmp_path), 0, 300)
    equal(tmp_path)
    print(f"\n{how}: the other machine went on after {took:.0f} s")
