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
_NO_EPOCH = -1  # the "epoch" of what stays the same all the run


def _mix(z):
    """splitmix64's finaliser for a Python integer below 2^64."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def _mix_array(z):
    """The same for a uint64 array, whose arithmetic wraps as splitmix64 needs it."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _key(seed, epoch):
    return _mix((_mix((seed * _GAMMA + 1) & _MASK) + epoch * _GAMMA) & _MASK)


def _stream(seed, epoch, index):
    """The start of an index's stream: its j-th number is mix(stream + (j + 1) gamma)."""
    return _mix((_key(seed, epoch) + (index + 2) * _GAMMA) & _MASK)


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
    indices = np.asarray(indices).astype(np.uint64)
    with np.errstate(over="ignore"):
        gamma = np.uint64(_GAMMA)
        streams = _mix_array(np.uint64(_key(seed, epoch)) + (indices + np.uint64(2)) * gamma)
        steps = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * gamma
        bits = _mix_array(streams[:, None] + steps[None, :])  # (len(indices), count)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed, epoch, size):
    """The shuffled order of an epoch: a permutation of 0..size-1, int64 (size,)."""
    stream = _stream(seed, epoch, _ORDER)
    with np.errstate(over="ignore"):
        steps = (np.arange(size, dtype=np.uint64) + np.uint64(1)) * np.uint64(_GAMMA)
        keys = _mix_array(np.uint64(stream) + steps)
    return np.argsort(keys, kind="stable")


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
