"""The folder of -save while a run writes there. Port of the writing part of checkpoints.lua.

It holds model_N.pth, optimState_N.pth, model_best.pth, log.jsonl and latest.pth. Each file appears
whole (files.py), optimState_N.pth after all else of its epoch and latest.pth last, so that the
folder resumes whenever the run is killed. What is saved inside an epoch is one file, both model and
optimState, which the next one replaces. Differs from the Lua: the training goes on while a thread
writes a copy of the state; a full disk ends the run only if its last state could not be saved.
"""

import contextlib
import glob
import json
import math
import os
import re
import threading

import torch

from parallel import group, signals
from runtime.errors import InputError
from runtime.terminal import say
from storage import atomic, lock, log
from storage.tensorboard import Events

INSIDE = "inside_epoch.pth"
LOCK_WAIT = 2  # seconds for another run to go
LOCK_WAIT_ELASTIC = 60  # after an agent's restart: its predecessor may have to be killed first


class RunFolder:
    """While entered, this run alone writes to -save. Of several processes only the first does."""

    def __init__(self, opt):
        self.opt, self.path = opt, opt.save
        self.writes = group.rank() == 0 and not opt.testOnly
        self.best = (math.inf, math.inf)  # (top-1, top-5) error of the best model so far
        self.lines, self.logged = [], 0  # of log.jsonl, and how many of them are in the file
        self.events = Events(opt.save) if opt.tensorboard else None
        self.buffers = {}  # for the copies of tensors, kept from one save to the next
        self.thread = self.crash = None
        self.unsaved = None  # why the latest state is not on disk
        self.owed = None  # the best model, where it is not on disk
        self.on_disk = "nothing"
        self.made = self.writes and not os.path.isdir(opt.save)
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        if self.writes:
            elastic = "TORCHELASTIC_RUN_ID" in os.environ
            try:
                os.makedirs(self.path, exist_ok=True)
                held = lock.held(self.path, LOCK_WAIT_ELASTIC if elastic else LOCK_WAIT, say)
                self.stack.enter_context(held)
                for path in atomic.left_over(self.path):
                    os.remove(path)
            except OSError as error:
                self.stack.close()
                raise _cannot_begin(self.path, error) from None
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is not KeyboardInterrupt:  # a second Ctrl-C does not wait
                self.wait()
            if kind is None:
                self._insist("at the end of the run")
        finally:
            self.stack.close()
            if self.made:
                with contextlib.suppress(OSError):  # unless something lies there
                    os.rmdir(self.path)

    def begin(self, checkpoint, model, device):
        """A new log.jsonl, or the resumed run's up to its epoch; and its best error."""
        if checkpoint is not None:
            self.best = checkpoint["best"]
        if not self.writes:
            return
        self.lines = [log.about(self.opt, model, device)]
        try:
            if checkpoint is not None:
                self.lines = checkpoint.get("log") or self.lines
                self._continue(checkpoint)
            # an older run's stays until this one has saved something
            if checkpoint is not None or not os.path.exists(self._in("log.jsonl")):
                self._write_log(self.lines)
        except OSError as error:
            raise _cannot_begin(self.path, error) from None

    def _continue(self, checkpoint):
        if os.path.samefile(self.opt.resume, self.path):
            self.on_disk = f"epoch {checkpoint['epoch']}"
            if os.path.basename(checkpoint["modelFile"]) != INSIDE:
                self._end_inside()  # a kill came just before
        theirs, ours = os.path.join(self.opt.resume, "model_best.pth"), self._in("model_best.pth")
        if os.path.isfile(theirs) and not os.path.exists(ours):
            atomic.copy(theirs, ours)

    def save(self, epoch, content, state, is_best, entry):
        """Save the state after an epoch.

        content: what models.pack gives; state: the trainer's; is_best: whether `best` is this
        epoch's; entry: the epoch's line of the log.
        """
        if not self.writes:
            return
        self.lines = [*self.lines, {"epoch": epoch, **entry}]
        state = {"epoch": epoch, **self._about(), **state}
        self._start(f"epoch {epoch}", self._epoch, content, state, is_best)

    def save_inside(self, content, state, final=False):
        """Save the state inside an epoch; if the run ends then (`final`), a failure is an error."""
        if not self.writes:
            return
        epoch = state["position"]["epoch"]
        # in the file, `epoch` counts the finished ones
        state = {"epoch": epoch - 1, **self._about(), **state}
        self._start(f"a part of epoch {epoch}", self._inside, content, state)
        if final:
            self.wait()
            self._insist("when it was interrupted")

    def _about(self):
        about = {"best": self.best, "options": log.options(self.opt), "log": self.lines}
        return {**about, "agents": self.opt.agents}

    def _start(self, what, write, *job):
        """Copy the state, which takes as long as the run has to wait, and write it in a thread."""
        self.wait()  # one at a time: the buffers are in use
        with torch.inference_mode(False), torch.no_grad():  # it may be in the middle of a test
            job = self._copied(job, ())
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        with signals.blocked():  # signals are for the main thread
            self.thread = threading.Thread(target=self._try, args=(what, write, job), daemon=True)
            self.thread.start()

    def _copied(self, value, place):
        """Plain values with all tensors copied to the CPU, into this place's buffer."""
        if isinstance(value, dict):
            return {k: self._copied(v, (*place, k)) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._copied(v, (*place, i)) for i, v in enumerate(value))
        if not isinstance(value, torch.Tensor):
            return value
        buffer = self.buffers.get(place)
        if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
            buffer = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
            self.buffers[place] = buffer
        return buffer.copy_(value, non_blocking=True)

    def wait(self):
        """Until the thread has written what there was to write."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.crash is not None:
            raise self.crash

    def _insist(self, when):
        if self.unsaved:
            reason, self.unsaved = self.unsaved, None
            raise InputError(f"{when} its state could not be saved: {reason}; {self._held()}")

    def _held(self):
        return f"{self.path} still holds {self.on_disk}"

    def _try(self, what, write, job):
        try:
            write(*job)
            self.on_disk, self.unsaved = what, None
        except OSError as error:
            self.unsaved = error.strerror or str(error)
            if self.owed:
                self.buffers = {}  # what is copied into them stays: it has yet to be written
            say(
                f"=> {what} could not be saved: {self.unsaved}; {self._held()}, training goes on "
                "and the next save tries again"
            )
        except BaseException as error:  # nothing that was foreseen: for the main thread
            self.crash = error

    def _epoch(self, model, state, is_best):
        epoch = state["epoch"]
        model_file, optim_file = f"model_{epoch}.pth", f"optimState_{epoch}.pth"
        if is_best:
            self.owed = model
        atomic.save(self._in(model_file), model)
        self._write_best()
        self._write_log(state["log"])
        digest = atomic.digest(self._in(model_file))
        atomic.save(self._in(optim_file), {**state, "digest": digest})
        self._point(epoch, model_file, optim_file)
        self._end_inside()
        if self.opt.keep:
            self._forget(epoch - self.opt.keep)

    def _inside(self, model, state):
        # one file, for it is replaced while latest.pth names it
        atomic.save(self._in(INSIDE), {**model, **state})
        self._write_best()
        self._write_log(state["log"])
        self._point(state["epoch"], INSIDE, INSIDE)

    def _write_best(self):
        """The best model, if it is not on disk yet: this one or one that could not be written."""
        if self.owed:
            atomic.save(self._in("model_best.pth"), self.owed)
            self.owed = None

    def _end_inside(self):
        with contextlib.suppress(FileNotFoundError):
            os.remove(self._in(INSIDE))

    def _point(self, epoch, model_file, optim_file):
        """Let latest.pth name these files."""
        newest = {"epoch": epoch, "modelFile": model_file, "optimFile": optim_file}
        newest.update(nGPU=self.opt.nGPU, agents=self.opt.agents)
        atomic.save(self._in("latest.pth"), newest)

    def _write_log(self, lines):
        if self.logged != len(lines):
            with atomic.replacing(self._in("log.jsonl")) as file:
                for line in lines:
                    file.write(json.dumps(line).encode() + b"\n")
            self.logged = len(lines)
        if self.events:
            self.events.write(lines)

    def _forget(self, last):
        """Remove the files of epochs up to `last` (-keep)."""
        for path in glob.glob(os.path.join(glob.escape(self.path), "*_*.pth")):
            match = re.fullmatch(r"(?:model|optimState)_(\d+)\.pth", os.path.basename(path))
            if match and int(match[1]) <= last:
                os.remove(path)

    def _in(self, name):
        return os.path.join(self.path, name)


def _cannot_begin(path, error):
    return InputError(f"unable to create checkpoint directory {path}: {error.strerror or error}")
