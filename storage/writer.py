"""A thread that writes while the training goes on, from a copy of what it is given."""

import threading

import torch


class Writer:
    """Runs one write at a time. The copy's buffers on the CPU are reused by the next write."""

    def __init__(self):
        self.buffers = {}  # {path of keys to a tensor: its copy}
        self.thread = self.error = None

    def start(self, write, *content):
        """Call write(*copy of content) in the thread; the caller waits for the copy only."""
        self.wait()  # the buffers are in use until then
        with torch.inference_mode(False), torch.no_grad():  # the caller may be inside a test
            content = self._copy(content, ())
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.thread = threading.Thread(target=self._run, args=(write, content), daemon=True)
        self.thread.start()

    def wait(self):
        """Wait until the thread is done; an error in it is raised here."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error is not None:
            raise self.error

    def keep_copy(self):
        """Leave the last copy to its holder: the next write gets buffers of its own."""
        self.buffers = {}

    def _copy(self, value, path):
        """Plain values, with each tensor copied to its buffer."""
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

    def _run(self, write, content):
        try:
            write(*content)
        except BaseException as error:  # for the main thread
            self.error = error
