"""The numbers of each iteration on their way from the device to the line that tells them.

No Lua file: there each iteration waited for its loss. A GPU gets its next iteration before the
numbers of the last one are read, so printing, scoring and loading never make it wait. On the CPU
the numbers are there at once, and are told at once.
"""

import time
from collections import deque

import torch

import distributed

LAG = 1  # iterations a GPU is ahead: enough, as long as queuing one takes less than running it


class Results:
    """Numbers are sent once an iteration, and told in the same order, `lag` iterations later.

    The lag is a fixed one: every process must come to heed a signal in the same iteration, so none
    may read numbers merely because they have arrived.
    """

    def __init__(self, device):
        cuda = device.type == "cuda"
        self.device, self.lag = device, LAG if cuda else 0
        # beside the one that computes, so that a read does not wait for the next iteration's work
        self.stream = torch.cuda.Stream(device) if cuda else None
        self.waiting = deque()  # (sums on the CPU, what the copy needs, how many numbers, tell)
        self.asked = deque()  # what came with numbers that are told, but is not heeded yet
        self.start()

    def start(self):
        """Time runs from here."""
        self.last = time.perf_counter()

    def send(self, numbers, asked, tell):
        """Start the sum over all processes: one exchange, not waited for on a GPU.

        numbers: tensors of one number each on the device; asked: plain counts of this process.
        tell(numbers, seconds) is called with the sums, and the time since those before were told.
        """
        device = torch.stack([number.double() for number in numbers])
        host = torch.tensor(asked, dtype=torch.float64)
        if self.stream is None:
            here = distributed.total(torch.cat([device, host]))
            self.waiting.append((here, None, len(numbers), tell))
            return
        host = host.pin_memory().to(self.device, non_blocking=True)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            sums = distributed.total(torch.cat([device, host]))
            here = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
            here.copy_(sums, non_blocking=True)
            event = torch.cuda.Event(blocking=True)  # a core that spins is one less for the workers
            event.record()
        self.waiting.append((here, (event, device, host, sums), len(numbers), tell))

    def heed(self, lag=None):
        """Tell what is older than `lag` iterations; returns what its `asked` add up to, or ()."""
        lag = self.lag if lag is None else lag
        asked = ()
        while len(self.waiting) + len(self.asked) > lag:
            if not self.asked:
                self._tell_next()
            asked = self.asked.popleft()
        return asked

    def settle(self):
        """Tell all there is; a later `heed` returns what these asked for."""
        while self.waiting:
            self._tell_next()

    def _tell_next(self):
        here, copy, count, tell = self.waiting.popleft()
        if copy is not None:
            copy[0].synchronize()
        sums, now = here.tolist(), time.perf_counter()
        seconds, self.last = now - self.last, now
        self.asked.append(sums[count:])
        tell(sums[:count], seconds)
