"""Random numbers as pure functions of (seed, epoch, index): there is no state to save or share.

The Lua had one Mersenne Twister per worker thread, so its augmentation depended on nThreads and
could not be resumed. Here the j-th number of image i in epoch e is a hash of (seed, e, i, j):
splitmix64 (Steele et al. 2014). `Draws` gives the numbers of one image, `table` those of a batch.
"""

import math

import numpy as np

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd
_ORDER = -1  # the "index" of the stream that shuffles the epoch; images count from 0
_NO_EPOCH = -1  # the "epoch" of what stays the same for the whole run


def _mix(z):
    """splitmix64's finaliser, for an integer below 2^64 or a uint64 array."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def _stream(seed, epoch, index):
    """The start of an index's stream: its j-th number is mix(stream + (j + 1) gamma)."""
    key = _mix((_mix((seed * _GAMMA + 1) & _MASK) + epoch * _GAMMA) & _MASK)
    return _mix((key + (index + 2) * _GAMMA) & _MASK)


def _numbers(streams, count):
    """The first `count` numbers of each stream: uint64 (len(streams), count)."""
    return _mix(streams[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GAMMA)


class Draws:
    """The random numbers of one image, with the names and arguments of Lua's torch.*."""

    def __init__(self, seed, epoch, index):
        self._state = _stream(seed, epoch, index)

    def uniform(self, low=0.0, high=1.0):
        """A float in [low, high)."""
        self._state = (self._state + _GAMMA) & _MASK
        return low + (high - low) * ((_mix(self._state) >> 11) * 2.0**-53)

    def random(self, low, high):
        """An integer in [low, high], the last one included (torch.random)."""
        return low + int(self.uniform() * (high - low + 1))

    def normal(self, mean=0.0, std=1.0):
        """Box-Muller as in Torch7, but each number takes two uniforms; none is cached."""
        angle, radius = self.uniform(), self.uniform()
        return mean + std * math.sqrt(-2 * math.log(1 - radius)) * math.cos(2 * math.pi * angle)

    def randperm(self, n):
        """A permutation of 0..n-1 as a list (torch.randperm counts from 1)."""
        order = list(range(n))
        for i in range(n - 1):
            j = self.random(i, n - 1)
            order[i], order[j] = order[j], order[i]
        return order


def table(seed, epoch, indices, count):
    """The first `count` uniforms of each index: float64 (len(indices), count).

    Row n equals the first `count` calls of `Draws(seed, epoch, indices[n]).uniform()`.
    """
    streams = _stream(seed, epoch, np.asarray(indices).astype(np.uint64))
    return (_numbers(streams, count) >> 11).astype(np.float64) * 2.0**-53


def permutation(seed, epoch, size):
    """The shuffled order of an epoch: a permutation of 0..size-1, int64 (size,)."""
    stream = np.array([_stream(seed, epoch, _ORDER)], np.uint64)
    return np.argsort(_numbers(stream, size)[0], kind="stable")


def held_out(targets, share, fold, seed):
    """Which images a run holds out of its training images: bool (N,).

    targets (N,): their classes. share: of each class, at least one image of two or more. fold, if
    it is not empty, takes the place of the share: "3/5" is the third of five equal parts. A
    function of these alone, so any machine and any number of processes hold out the same images.
    """
    order = permutation(seed, _NO_EPOCH, len(targets))
    order = order[np.argsort(targets[order], kind="stable")]  # shuffled within each class
    place, counts = np.arange(len(order)), np.bincount(targets)
    if fold:
        part, parts = map(int, fold.split("/"))
        chosen = place % parts == part - 1
    else:
        place -= np.repeat(np.cumsum(counts) - counts, counts)  # within the class
        chosen = place < np.repeat(np.clip(np.rint(share * counts), 1, counts - 1), counts)
    held = np.zeros(len(order), bool)
    held[order[chosen]] = True
    return held
