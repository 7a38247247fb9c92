"""The lock of a run folder: who has it, who gets it next."""

import os
import shutil
import subprocess
import sys
import threading

import pytest

from runtime.errors import InputError
from storage import lock

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def refused(folder):
    """Whether another process is refused; its sentence names this process."""
    code = (
        "import sys\nfrom storage import lock\nfrom runtime.errors import InputError\n"
        "try:\n    with lock.held(sys.argv[1], 0): print('held')\n"
        "except InputError as error: print(error)\n"
    )
    words = [sys.executable, "-c", code, str(folder)]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said == "held\n" or f"process {os.getpid()} on " in said
    return said != "held\n"


def test_held_and_released(tmp_path):
    with lock.held(tmp_path, 0):
        assert refused(tmp_path)
    assert not os.listdir(tmp_path) and not refused(tmp_path)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a folder that takes no files")
def test_a_folder_that_takes_no_files():
    with pytest.raises(InputError, match="^/proc/lock cannot be written: "), lock.held("/proc", 0):
        pass


def test_another_thread_may_release_it_and_hold_it_again(tmp_path):
    """As when the thread that writes finds the folder removed."""
    folder = tmp_path / "run"
    folder.mkdir()
    first, second = lock.held(folder, 0), lock.held(folder, 0)
    first.__enter__()
    shutil.rmtree(folder)

    def again():
        first.__exit__(None, None, None)
        folder.mkdir()
        second.__enter__()

    thread = threading.Thread(target=again)
    thread.start()
    thread.join()
    assert refused(folder)
    second.__exit__(None, None, None)
    assert not refused(folder) and not os.listdir(folder)


def test_a_worker_that_lives_on_does_not_hold_it(tmp_path):
    """A forked process has inherited the open file."""
    reading, writing = os.pipe()
    with lock.held(tmp_path, 0):
        child = os.fork()
        if not child:
            os.close(writing)
            os.read(reading, 1)  # until the parent closes its end
            os._exit(0)
    assert not refused(tmp_path)
    os.close(writing)
    os.waitpid(child, 0)


def test_an_unwritable_folder_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError), lock.held(tmp_path / "file" / "run", 0):
        pass
    (tmp_path / "lock.owner").mkdir()  # what names the holder is not vital
    with lock.held(tmp_path, 0), pytest.raises(InputError, match="it just started"):  # noqa: SIM117
        with lock.held(tmp_path, 0):
            pass


@pytest.mark.parametrize("target", ["file", "nothing", "/nowhere/at/all", "lock"])
def test_a_link_is_no_lock(tmp_path, target):
    """Another run may hold a lock on what the link leads to, or nobody could."""
    (tmp_path / "file").touch()
    os.symlink(target, tmp_path / "lock")
    with pytest.raises(InputError, match="lock is a link, not a lock: remove it"):  # noqa: SIM117
        with lock.held(tmp_path, 0):
            pass
    assert os.readlink(tmp_path / "lock") == target
