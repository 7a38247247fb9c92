"""The last line of a terminal, on pseudo-terminals and a screen of our own; the time left."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types

import pytest
from support import ptys
from support.evaluations import pair
from support.ptys import Screen, read
from support.runs import NET, ROOT

import checkpoints
import convert
import evaluate
from datasets import imagenet_gen
from pretrained import classify, extract_features
from runtime import progress, terminal
from runtime.errors import InputError
from runtime.progress import Clock, slow, span
from runtime.terminal import Terminal, complain, note, show

STATUS = re.compile(r" epoch \d of \d: \d+:\d\d left, all epochs: \d+:\d\d left")


@pytest.fixture
def tty(monkeypatch):
    """tty() makes a terminal of 40 columns stdout and stderr; it returns what gives their text.

    Not before: between fixture and test pytest sets its own.
    """
    ends = ptys.open_pty(40)
    files = [os.fdopen(os.dup(ends[1]), "w") for _ in range(2)]

    def begin():
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(terminal, "MIN_INTERVAL", 0)
        monkeypatch.setattr(sys, "stdout", files[0])
        monkeypatch.setattr(sys, "stderr", files[1])
        return lambda: read(ends[0], 0.05)

    yield begin
    monkeypatch.undo()
    for file in files:
        file.close()
    for end in ends:
        os.close(end)


def test_lines_scroll_above_the_last(tty):
    came = tty()
    screen = Screen(40)
    with Terminal():
        show("one")
        assert screen.feed(came()).rows == ["one"] and screen.column == 0
        print("a line")
        assert screen.feed(came()).rows == ["a line", "one"]
        print("an error that is quite long", file=sys.stderr)
        show("2")
        assert screen.feed(came()).rows == ["a line", "an error that is quite long", "2"]
        print("half", end="")
        show("never over the half")
        assert screen.feed(came()).rows[-1] == "half"
        print(" and half")
        show("")
        print("last")
    rows = ["a line", "an error that is quite long", "half and half", "last", ""]
    assert screen.feed(came()).rows == rows
    print("free again")
    assert came() == "free again\r\n"


@pytest.mark.parametrize("columns", [1, 2, 12, 39, 40])
def test_a_narrow_terminal(tty, columns):
    """The text is cut: the cursor never reaches a second line."""
    came = tty()
    ptys.resize(sys.stdout.fileno(), columns)
    screen = Screen(columns)
    with Terminal():
        for text in ("x" * 100, "yy", "z" * 50):
            show(text)
            assert screen.feed(came()).rows == [text[: columns - 1]]
        ptys.resize(sys.stdout.fileno(), 30)
        show("w" * 100)
        assert Screen(30).feed(came()).rows == ["w" * 29]
    assert screen.feed(came()).rows == [""]


def test_the_search_for_images_shows_how_far_it_is(tty, tmp_path, photos):
    came = tty()
    with Terminal():
        opt = types.SimpleNamespace(data=photos, testOnly=False)
        opt.classOrder, opt.skipCorrupt = "text", False
        imagenet_gen.exec(opt, str(tmp_path / "cache.npz"))
    text = came()
    shown = re.findall(r" \d+ images in \d of \d folders", text)
    wanted = [f" {2 * i * n} images in {i} of 2 folders" for n in (2, 3) for i in (0, 1)]
    assert list(dict.fromkeys(shown)) == list(dict.fromkeys(wanted))
    assert not any("folders" in row for row in Screen(40).feed(text).rows)


def test_slow_work_has_two_lines_in_a_log(monkeypatch, capsys):
    with slow("counting") as show_detail:
        show_detail("3 sheep")
    assert capsys.readouterr() == ("", "")  # it was fast
    monkeypatch.setattr(progress, "SILENT", 0.02)
    with slow("counting"):
        time.sleep(0.2)
        assert capsys.readouterr() == ("", "=> counting ...\n")
    assert capsys.readouterr() == ("", "=> counting: done in 0:00\n")
    with pytest.raises(ValueError), slow("counting"):
        time.sleep(0.1)
        raise ValueError
    assert capsys.readouterr() == ("", "=> counting ...\n")


@pytest.mark.parametrize("stdout", [True, False])
def test_slow_work_on_a_terminal(tty, monkeypatch, stdout):
    """Which may be stderr alone, with stdout in a file."""
    came, screen, file = tty(), Screen(40), io.StringIO()
    if not stdout:
        monkeypatch.setattr(sys, "stdout", file)
    with Terminal(strict=True):
        with slow("counting") as show_detail:
            assert screen.feed(came()).rows == [" counting"]
            show_detail("3 sheep")
            assert screen.feed(came()).rows == [" counting: 3 sheep"]
            print("a line")
            note("a note")
            rows = [*["a line"] * stdout, "a note", " counting: 3 sheep"]
            assert screen.feed(came()).rows == rows
        assert screen.feed(came()).rows == [*rows[:-1], ""]
    assert file.getvalue() == "a line\n" * (not stdout)


def test_what_is_slow(monkeypatch, capsys, tmp_path, photos):
    """Whatever takes long with large files has its lines."""
    monkeypatch.setattr(progress, "SILENT", -1)
    monkeypatch.chdir(tmp_path)
    (net, _), (other, _) = pair(tmp_path, photos).values()
    words = "-nThreads 0 -gen gen -predictions p.csv -classErrors e.csv -confusion c.csv"
    words += " -scores s.npy -temperature true"
    evaluate.main([net, other, "-data", photos, *words.split()])
    classify.main([net, f"{photos}/val"])
    extract_features.main([net, f"{photos}/val/plain/0.jpg"])
    convert.main([net, "net.safetensors"])
    for name in [f"{part}_{n}.pth" for part in ("model", "optimState") for n in range(5)]:
        (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(InputError, match="is intact: .*optimState_3.pth.*; and 3 more; to start"):
        checkpoints.newest(str(tmp_path))
    done = re.findall(r"=> (.*): done in 0:0\d\n", capsys.readouterr().err)
    wanted = ["preparing imagenet"]
    wanted += [f"writing {name}" for name in ("p.csv", "e.csv", "c.csv", "s.npy")]
    wanted += ["fitting the temperature", f"listing the images in {photos}/val", "8 images"]
    wanted += ["1 images", "writing net.safetensors"]
    wanted += [f"looking for an intact checkpoint in {tmp_path}"]
    assert [what for what in dict.fromkeys(done) if what in wanted] == wanted


def test_threads_do_not_mix_their_lines(tty):
    came = tty()
    screen, got = Screen(40), []

    def speak(name):
        for i in range(150):
            print(f"{name}{i:03}\n", end="")
            show(f"{name} is at {i}")

    with Terminal():
        threads = [threading.Thread(target=speak, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            got.append(came())
    rows = screen.feed("".join(got) + came()).rows
    assert sorted(rows) == sorted(["", *(f"{n}{i:03}" for n in "ab" for i in range(150))])


def test_the_workers_copy_does_nothing(tty):
    """A fork has the streams, too: it prints, but redraws nothing."""
    came = tty()
    with Terminal():
        show("status")
        child = os.fork()
        if not child:
            print("from the worker", flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        assert came().count("status") == 1


def test_not_without_a_terminal(tmp_path, monkeypatch, tty):
    came = tty()
    for kind, rank, term in (
        ("lines", "0", "xterm"),
        ("auto", "1", "xterm"),
        ("auto", "0", "dumb"),
    ):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("TERM", term)
        with Terminal(kind):
            show("status")
            print("line")
            print("error", file=sys.stderr, flush=True)
        sys.stdout.flush()
        assert came().split() in (["line", "error"], ["error", "line"])
    monkeypatch.undo()
    with open(tmp_path / "out", "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        with Terminal():
            show("status")
            print("line")
    assert (tmp_path / "out").read_text() == "line\n"


def test_notes_do_not_go_to_stdout(monkeypatch, capsys):
    """Where stderr is closed: print(file=None) would print there."""
    monkeypatch.setattr(sys, "stderr", None)
    note("=> a note")
    complain("an error")
    assert capsys.readouterr().out == ""


def test_a_terminal_that_has_gone(monkeypatch):
    ours, theirs = ptys.open_pty(40)
    monkeypatch.setenv("TERM", "xterm")
    out = os.fdopen(theirs, "w")
    monkeypatch.setattr(sys, "stdout", out)
    with Terminal():
        show("one")
        os.close(ours)
        show("two")
        print("line")  # nothing raises: the run goes on without its lines
    with pytest.raises(OSError):
        out.close()


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (750, "12:30"), (3599.7, "1:00:00")]
    + [(18131, "5:02:11"), (86399.6, "1 d 00:00:00"), (273731, "3 d 04:02:11")],
)
def test_span(seconds, text):
    assert span(seconds) == text


def test_the_time_left_is_what_then_passes():
    """A run of 3 epochs of 7 iterations of 2 s and 4 batches of 0.5 s, all simulated."""
    way = [
        (split, epoch, n, seconds)
        for epoch in (1, 2, 3)
        for split, count, seconds in (("train", 7, 2.0), ("test", 4, 0.5))
        for n in range(1, count + 1)
    ]
    clock, told = Clock(3, 7, 4), {}
    for split, epoch, n, seconds in way:
        clock.tick(split, epoch, n, seconds)
        told[split, epoch, n] = clock.left(split, epoch, n)
    for i, (split, epoch, n, _) in enumerate(way):
        if epoch == 1 and split == "train":
            continue  # what a test takes is not known yet
        of_run = sum(seconds for *_, seconds in way[i + 1 :])
        of_epoch = sum(seconds for _, e, _, seconds in way[i + 1 :] if e == epoch)
        assert told[split, epoch, n] == pytest.approx((of_epoch, of_run), abs=1e-9)
    # 6 iterations to go, and a third of one for each of 4 batches; then two such epochs
    assert told["train", 1, 1] == pytest.approx((12 + 8 / 3, 12 + 8 / 3 + 2 * (14 + 8 / 3)))


def test_resumed_inside_a_test_and_changing_speed():
    clock = Clock(2, 10, 5)
    clock.tick("test", 1, 3, 1.0)
    assert clock.left("test", 1, 3) == pytest.approx((2, 2 + 10 * 3 + 5))
    for n in range(1000):
        clock.tick("train", 2, 0, 100.0 if n < 900 else 1.0)
    # the latest hundred count: nothing of the slow start is left
    assert clock.left("train", 2, 0) == pytest.approx((10 + 5, 10 + 5))
    alone = Clock(90, 10, 5)
    alone.tick("test", 0, 1, 2.0)
    assert alone.left("test", 0, 1) == (8, 8)  # -testOnly has no epochs


def program(command, data):
    return [sys.executable, os.path.join(ROOT, "main.py"), *command.split(), "-data", data]


def without_times(lines):
    """The lines from the training on, but for what a clock decides."""
    lines = lines[lines.index("=> Training epoch # 1") :]
    return [re.sub(r"(Time|Data) +\d+\.\d+", r"\1", line) for line in lines]


def test_a_run_on_a_terminal(cifar, tmp_path):
    """The lines are those that a pipe gets, which has not a byte more; below them the time left."""
    command = NET + " -nEpochs 2"
    process, ours = ptys.start(program(command, cifar), 120, tmp_path)
    chunks = ptys.until(process, ours)
    assert process.wait() == 0
    screen, shown = Screen(120), set()
    for part in "".join(chunks).split("\x1b[K"):
        shown.add(screen.feed(part).rows[-1])
        screen.feed("\x1b[K")
    seen = [row for row in shown if row.startswith(" epoch ")]
    assert len(seen) > 1 and all(STATUS.fullmatch(row) for row in seen)
    assert any(row.startswith(" epoch 2 of 2") and row.endswith(": 0:00 left") for row in seen)
    piped = subprocess.run(
        program(command + " -save other", cifar),
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"},
    )
    assert b"\r" not in piped.stdout and b"\x1b" not in piped.stdout
    assert piped.stderr == b"=> No CUDA device: running on the CPU\n"
    theirs = without_times(piped.stdout.decode().split("\n"))
    ours = without_times(screen.rows)
    assert len(theirs) > 20 and ours == theirs  # to the last, which is empty


@pytest.mark.parametrize("more", ["", pytest.param(" -nGPU 2 -nProcs 2", marks=pytest.mark.slow)])
def test_stopped_on_a_terminal(cifar, tmp_path, more):
    command = NET + " -nEpochs 10000" + more
    process, ours = ptys.start(program(command, cifar), 200, tmp_path)
    chunks = ptys.until(process, ours, wanted="all epochs")
    os.killpg(process.pid, signal.SIGINT)
    screen = Screen(200).feed("".join(chunks + ptys.until(process, ours)))
    assert process.wait() == 130
    assert screen.rows[-2].startswith("main.py: interrupted by SIGINT in ")
    assert screen.rows[-1] == "" and not any(row.startswith(" epoch") for row in screen.rows)


@pytest.mark.slow
def test_killed_processes_leave_no_last_line(cifar, tmp_path):
    command = NET + " -nEpochs 10000 -nGPU 2 -nProcs 2"
    process, ours = ptys.start(program(command, cifar), 200, tmp_path)
    chunks = ptys.until(process, ours, wanted="all epochs")
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        os.kill(int(file.read().split()[0]), signal.SIGKILL)
    screen = Screen(200).feed("".join(chunks + ptys.until(process, ours)))
    assert process.wait() == 137
    assert not any(row.startswith(" epoch") for row in screen.rows)
    assert any(row.startswith("main.py: process 0 was killed by SIGKILL") for row in screen.rows)


def test_nothing_follows_the_last_line(tty, monkeypatch):
    """After a second Ctrl-C, say: another thread prints and shows until the process has ended."""
    came, screen, ended = tty(), Screen(40), []
    with Terminal():
        show("a status line")
        thread = threading.Thread(target=lambda: [show(f"status {i}") for i in range(20)])

        def leave(status):
            thread.start()
            thread.join(0.2)
            ended.append((status, screen.feed(came()).rows))

        monkeypatch.setattr(terminal, "leave", leave)
        terminal.end("main.py: interrupted", 130)
        thread.join()
    assert ended == [(130, ["main.py: interrupted", ""])]
