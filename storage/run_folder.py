"""The run folder (-save) while a run writes to it. Port of the writing part of checkpoints.lua.

It holds model_N.pth, optimState_N.pth, model_best.pth, log.jsonl and latest.pth. Every write is
atomic (atomic.py). A run never overwrites or removes a file that it did not write: files that it
finds are set aside. optimState_N.pth is written after the other files of its epoch, and then
latest.pth, which names both, so the folder resumes whenever the run is killed. A checkpoint inside
an epoch is a single file with model and state, which the next checkpoint replaces. Differs from the
Lua: training goes on while a thread writes a copy of the state, and a full disk ends the run only
if its last state could not be saved.
"""

import contextlib
import errno
import itertools
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor

import torch

from parallel import group
from runtime.errors import InputError, cause
from runtime.terminal import note
from storage import atomic, lock, log, schema, tensorboard

INSIDE = "inside_epoch.pth"
# The files that a run leaves, except its lock. A Torch7 program's are not ours.
OURS = re.compile(
    r"(?:model|optimState)_\d+\.pth|(?:latest|model_best|inside_epoch)\.pth|log\.jsonl"
    r"|detections\.(?:json|png)|(?:earlier\.)?events\.out\.tfevents\..*\.main"
)
EPOCH = re.compile(r"(model|optimState)_(0|[1-9][0-9]*)\.pth")
WRITTEN = rf"{OURS.pattern}|lock\.owner"  # what temporary files in the folder may become
FULL = (errno.ENOSPC, errno.EDQUOT)
LOCK_WAIT_ELASTIC = 60  # seconds after a restart by torchrun, which may have to kill the old run


class RunFolder:
    """While entered, this run alone writes to -save, from rank 0."""

    def __init__(self, path, writes=True):
        """writes: whether the run saves anything; a test alone does not."""
        self.path = path
        self.writes = writes and group.rank() == 0
        self.best = (math.inf, math.inf)  # (top-1, top-5) error of the best model so far
        self.log = self.tensorboard = None
        self.writer = _Writer()
        self.saved = "nothing"  # the latest state on disk, in words
        self.whole = None  # the epochs done in that state
        self.failure = None  # why a later state is not on disk
        self.unsaved_best = None  # the best model, while it is not on disk
        self.best_digest = None  # of the best model on disk
        self.created = self.writes and not os.path.isdir(path)
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        if self.writes:
            try:
                self._open()
                for path in atomic.left_over(self.path, WRITTEN):
                    os.remove(path)
            except OSError as error:
                self.stack.close()
                raise _cannot_begin(self.path, error) from None
        return self

    def _open(self):
        """Make the folder and hold its lock."""
        os.makedirs(self.path, exist_ok=True)
        elastic = "TORCHELASTIC_RUN_ID" in os.environ
        seconds = LOCK_WAIT_ELASTIC if elastic else lock.WAIT
        self.stack.enter_context(lock.held(self.path, seconds))

    def __exit__(self, kind, *_):
        try:
            if kind is not KeyboardInterrupt:  # a second Ctrl-C does not wait
                self.wait()
            if kind is None:
                self._raise_unsaved("the state at the end of the run")
        finally:
            self.stack.close()
            if self.created:
                with contextlib.suppress(OSError):  # not empty: files were saved
                    os.rmdir(self.path)

    def begin(self, opt, checkpoint, model, device):
        """Set aside what others wrote; write the log; take over the checkpoint's best model."""
        self.opt, self.agents = opt, group.agents()
        if checkpoint is not None:
            self.best = checkpoint["best"]
        if not self.writes:
            return
        if self.opt.tensorboard:
            self.tensorboard = tensorboard.TensorBoardLog(self.path)
        header = log.header(self.opt, model, device)
        if checkpoint is not None and checkpoint.get("log"):
            header = log.resumed(header, checkpoint["log"][0], checkpoint["epoch"])
        self.log = log.LogFile(self._file("log.jsonl"), header, checkpoint or {})
        try:
            resumed = self.opt.resume
            here = os.path.isdir(resumed) and os.path.samefile(resumed, self.path)
            aside = self._set_aside(checkpoint if here else None)
            if not (here and os.path.exists(self.log.path)):
                self.log.begin(os.path.join(aside if here and aside else resumed, "log.jsonl"))
            if checkpoint is not None:
                self._continue_from(checkpoint)
            if self.tensorboard:
                self.tensorboard.write(self.log)
        except OSError as error:
            raise _cannot_begin(self.path, error) from None

    def _set_aside(self, checkpoint):
        """Move the files of other runs into a folder beside, so that none is lost or mixed.

        checkpoint: that in this folder, or None. Returns the folder if there were such files.
        """
        names = filter(OURS.fullmatch, os.listdir(self.path))
        others = [name for name in names if not self._is_own(name, checkpoint)]
        if not others:
            return None
        folders = (self._file(f"earlier-{n}") for n in itertools.count(1))
        folder = next(itertools.filterfalse(os.path.exists, folders))
        os.mkdir(folder)
        # latest.pth first, so that the folder never resumes from half of its files
        for name in sorted(others, key=lambda name: name != "latest.pth"):
            os.rename(self._file(name), os.path.join(folder, name))
        note(f"=> {self.path} had files of an earlier run, which are now in {folder}")
        return folder

    def _is_own(self, name, checkpoint):
        """Whether this run wrote a file up to the checkpoint, or will write all of it again.

        Files of later epochs count as another run's, though a save that was cut off may be this
        run's.
        """
        path = self._file(name)
        with contextlib.suppress(OSError, atomic.Damaged):
            if name == "log.jsonl":
                # an earlier start that saved no epoch left its header
                return self.log.is_in(path, any_header=checkpoint is not None)
            if name == "model_best.pth" and checkpoint is not None:
                return atomic.digest(path) == checkpoint.get("bestDigest")
        if checkpoint is None:
            return False
        if name.startswith("detections."):  # every test of a detector writes them
            return any("test/AP" in log.scalars(line) for line in self.log.tail)
        files = {os.path.basename(checkpoint[key]) for key in ("modelFile", "file")}
        if "tfevents" in name or name == "latest.pth" or name in files:
            return True
        epoch, first = EPOCH.fullmatch(name), self.log.first
        return epoch and first is not None and first <= int(epoch[2]) <= checkpoint["epoch"]

    def _continue_from(self, checkpoint):
        """Take over the best model, from its epoch's file if model_best.pth is another one."""
        if os.path.samefile(self.opt.resume, self.path):
            self.whole = checkpoint["epoch"]
            self.saved = f"epoch {self.whole}"
        theirs, ours = os.path.join(self.opt.resume, "model_best.pth"), self._file("model_best.pth")
        if os.path.isfile(theirs) and not os.path.exists(ours):
            atomic.copy(theirs, ours)
        self.best_digest = checkpoint.get("bestDigest")
        if self.best_digest is None:
            return
        try:
            self._check_best(ours)
        except atomic.Damaged as error:
            # the last epoch with better scores than before
            epoch = scores = None
            for line in self.log.after(0):
                if line.get("best") != scores:
                    epoch, scores = line["epoch"], line.get("best")
            source = os.path.join(self.opt.resume, f"model_{epoch}.pth")
            try:
                self._check_best(source)
            except atomic.Damaged:
                note(f"=> {error}, and {source} cannot replace it")
            else:
                atomic.copy(source, ours)
                note(f"=> {error}; the file is made again from {source}")

    def _check_best(self, path):
        """Damaged if a file is not intact, or not the best model of the checkpoint."""
        atomic.load(path)
        if atomic.digest(path) != self.best_digest:
            raise atomic.Damaged(f"{path} is not the best model of the checkpoint")

    def save(self, epoch, content, state, is_best, entry):
        """Save the state after an epoch.

        content: what models.pack returns; state: the trainer's; is_best: whether `best` is this
        epoch's; entry: the epoch's line of the log.
        """
        if not self.writes:
            return
        self.wait()  # the thread writes the log
        self.log.add({"epoch": epoch, **entry})
        state = {"epoch": epoch, **self._run_state(), **state}
        what = f"epoch {epoch}"
        self.writer.start(self._try_to_save, what, self._write_epoch, content, state, is_best)

    def save_inside(self, content, state, final=False):
        """Save the state inside an epoch; `final`: the run ends now, so a failure is an error."""
        if not self.writes:
            return
        epoch = state["position"]["epoch"]
        # in the file, `epoch` counts finished epochs
        state = {"epoch": epoch - 1, **self._run_state(), **state}
        what = f"a part of epoch {epoch}"
        self.writer.start(self._try_to_save, what, self._write_inside, content, state)
        if final:
            self.wait()
            self._raise_unsaved("the state of the interrupted run")

    def save_before_test(self, content, state):
        """Save now if there are several processes, because one that fails in the test ends all."""
        if group.world_size() > 1:
            self.save_inside(content, state)
            self.wait()
            group.barrier()

    def best_model(self):
        """The path of the best model; InputError if it is not on disk."""
        if self.unsaved_best:
            self._raise_unsaved("the best model")
        return self._file("model_best.pth")

    def log_test(self, scores):
        """Add the test of the best model to the log, as its last line."""
        if not self.writes:
            return
        try:
            self.log.write({"final": scores})
        except OSError as error:
            self.failure = cause(error)

    def _run_state(self):
        """What a checkpoint holds beside the model, the trainer's state and the log."""
        return {"best": self.best, "options": dict(self.opt.values), "agents": self.agents}

    def wait(self):
        """Wait until the last save is finished."""
        self.writer.wait()

    def _try_to_save(self, what, write, model, state, *more):
        """In the thread: write. A full disk, or a value that is not finite, is only a line."""
        epoch = state["epoch"]
        try:
            self._make_again()
            _check_finite(model, state)
            try:
                write(model, state, *more)
            except OSError as error:
                # to make room, but the newest whole checkpoint stays
                if error.errno not in FULL or not self._remove_old(epoch, self.whole):
                    raise
                write(model, state, *more)
            self.saved, self.whole, self.failure = what, epoch, None
        except (OSError, InputError) as error:
            self.failure = cause(error)
            if self.unsaved_best:
                self.writer.buffers = {}  # the copy holds the best model, which a later save writes
            note(
                f"=> {what} could not be saved: {self.failure}; {self.path} still holds "
                f"{self.saved}, training goes on and the next save tries again"
            )

    def _make_again(self):
        """Make the folder again if it was removed, with its lock."""
        if os.path.isdir(self.path):
            return
        self.stack.close()
        self._open()
        if self.tensorboard:
            self.tensorboard.writer = None  # its next write begins a new file
        note(f"=> {self.path} was removed, and is made again")

    def _raise_unsaved(self, what):
        if self.failure:
            reason, self.failure = self.failure, None
            raise InputError(
                f"{what} could not be saved: {reason}; {self.path} still holds {self.saved}"
            )

    def _write_epoch(self, model, state, is_best):
        epoch = state["epoch"]
        model_file, optim_file = f"model_{epoch}.pth", f"optimState_{epoch}.pth"
        if is_best:
            self.unsaved_best = model
        atomic.save(self._file(model_file), model)
        self._write_best()
        self.log.write()
        if self.tensorboard:
            self.tensorboard.write(self.log)
        digests = {"digest": atomic.digest(self._file(model_file)), "bestDigest": self.best_digest}
        atomic.save(self._file(optim_file), {**state, **self.log.state(), **digests})
        self._write_latest(epoch, model_file, optim_file)
        with contextlib.suppress(FileNotFoundError):
            os.remove(self._file(INSIDE))
        self._remove_old(epoch)

    def _write_inside(self, model, state):
        self._write_best()
        self.log.write()
        # one file, because latest.pth names it already: model and state must change at once
        digest = {"bestDigest": self.best_digest}
        atomic.save(self._file(INSIDE), {**model, **state, **self.log.state(), **digest})
        self._write_latest(state["epoch"], INSIDE, INSIDE)

    def _write_best(self):
        """Write the best model, of this save or of one that failed, if it is not on disk."""
        if self.unsaved_best:
            path = self._file("model_best.pth")
            atomic.save(path, self.unsaved_best)
            self.unsaved_best, self.best_digest = None, atomic.digest(path)

    def _write_latest(self, epoch, model_file, optim_file):
        """Let latest.pth name these files."""
        latest = {"epoch": epoch, "modelFile": model_file, "optimFile": optim_file}
        latest.update(nGPU=self.opt.nGPU, agents=self.agents)
        atomic.save(self._file("latest.pth"), latest)

    def _remove_old(self, epoch, spared=None):
        """Remove epochs that -keep does not keep, except `spared`; returns whether any went."""
        names = os.listdir(self.path) if self.opt.keep else []
        epochs = {name: int(match[2]) for name in names if (match := EPOCH.fullmatch(name))}
        last = epoch - self.opt.keep
        old = [name for name, number in epochs.items() if number <= last and number != spared]
        for name in old:
            os.remove(self._file(name))
        return bool(old)

    def _file(self, name):
        return os.path.join(self.path, name)


class _Writer:
    """A thread that writes a copy of its input while training goes on, one write at a time.

    The next write reuses the copy's buffers on the CPU.
    """

    def __init__(self):
        self.buffers = {}  # {path of keys to a tensor: its copy}
        self.thread, self.written = ThreadPoolExecutor(1), None

    def start(self, write, *content):
        """Call write(*copy of content) in the thread; the caller only waits for the copy."""
        self.wait()  # the buffers are in use until then
        with torch.inference_mode(False), torch.no_grad():  # the caller may be inside a test
            content = self._copy(content, ())
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.written = self.thread.submit(write, *content)

    def wait(self):
        """Wait until the thread is done; raises the error that ended it."""
        if self.written is not None:
            self.written.result()

    def _copy(self, value, path):
        """The same value, with each tensor copied to its buffer."""
        if isinstance(value, dict):
            return {k: self._copy(v, (*path, k)) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._copy(v, (*path, i)) for i, v in enumerate(value))
        if not isinstance(value, torch.Tensor):
            return value
        buffer = self.buffers.get(path)
        if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
            buffer = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
            self.buffers[path] = buffer
        return buffer.copy_(value, non_blocking=True)


def _check_finite(model, state):
    """InputError for a state that could not be read again."""
    for name, tensor in [*model["model"].items(), *state["momentum"].items()]:
        fault = schema.tensor_fault(tensor) if tensor.is_floating_point() else None
        if fault:
            raise InputError(f"{name} {fault}")


def _cannot_begin(path, error):
    if not os.path.isdir(path):
        return InputError(f"unable to create checkpoint directory {path}: {cause(error)}")
    return InputError(f"cannot save to {path}: {cause(error)}: {error.filename or path}")
