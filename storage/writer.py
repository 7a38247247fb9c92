"""A thread that writes a copy of its input while training goes on."""

from concurrent.futures import ThreadPoolExecutor

import torch


class Writer:
    """Runs one write at a time. The next write reuses the copy's buffers on the CPU."""

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
