"""The loaders: every image once, the same whatever the workers, from any place on."""

import contextlib
import errno
import gc
import itertools
import os
import re
import resource
import signal
import sys
import tempfile
import types

import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

import dataloader
import datasets
import opts
from datasets import workers
from parallel import group
from runtime.errors import InputError

CPU = torch.device("cpu")


@pytest.mark.parametrize("elsewhere", [0, 1])
def test_objects_are_exchanged_only_where_an_image_is_skipped(monkeypatch, elsewhere):
    monkeypatch.setattr(group, "world_size", lambda: 2)
    monkeypatch.setattr(group, "all_reduce", lambda count: count + elsewhere)
    gathered = []

    def all_gather(own):
        gathered.append(own)
        return [own, [(1, "b.jpg is damaged")] * elsewhere]

    monkeypatch.setattr(group, "all_gather", all_gather)
    loader = types.SimpleNamespace(device="cpu", skipped=0)
    left = dataloader.DataLoader._skip(loader, [], [[2, 2], [2, 1]])
    assert left == [[2, 2], [2, 1] if not elsewhere else [1, 1]]
    assert (len(gathered), loader.skipped) == (elsewhere, elsewhere)


def options(command, data, tmp_path):
    return opts.parse(command.split() + ["-data", data, "-gen", str(tmp_path / "gen")])


def loader_of(dataset, opt, split):
    """A loader of this dataset, by the options of a run."""
    settings = dataloader.settings(opt, CPU)
    training, size = split == "train", opt.batchSize
    return dataloader.DataLoader(dataset, CPU, training=training, batch_size=size, **settings)


def same(batches, others):
    batches, others = list(batches), list(others)
    assert len(batches) == len(others) > 0
    for one, other in zip(batches, others):
        assert torch.equal(one.input, other.input) and torch.equal(one.target, other.target)
        assert one.slices == other.slices


def test_in_memory(cifar, tmp_path):
    opt = options("-dataset cifar10 -depth 20 -batchSize 8 -manualSeed 5", cifar, tmp_path)
    train, val = dataloader.create(opt, CPU)
    assert (train.size(), val.size()) == (5, 3)
    batches = list(train.run(1))
    assert [len(batch.target) for batch in batches] == [8, 8, 8, 8, 3]
    input = batches[0].input
    assert input.shape == (8, 3, 32, 32) and input.dtype == torch.float32
    assert input.is_contiguous(memory_format=torch.channels_last)
    same(train.run(1), batches)  # again, whatever came between
    same(train.run(1, start=3), batches[3:])
    targets = torch.cat([batch.target for batch in batches])
    labels = train.dataset.labels
    assert torch.equal(targets.sort()[0], labels.sort()[0]) and not torch.equal(targets, labels)
    assert not torch.equal(next(iter(train.run(2))).target, batches[0].target)
    # the validation images stand in the order of the file, unaugmented
    assert torch.equal(torch.cat([batch.target for batch in val.run(1)]), val.dataset.labels)
    same(val.run(1), val.run(7))


@pytest.mark.parametrize("threads", [1, 2])
def test_workers_change_nothing(photos, tmp_path, threads):
    command = "-depth 50 -batchSize 5 -manualSeed 2 -nThreads "
    alone = dataloader.create(options(command + "0", photos, tmp_path), CPU)
    others = dataloader.create(options(f"{command}{threads}", photos, tmp_path), CPU)
    for loader, other in zip(alone, others):
        for epoch in (1, 2):
            same(loader.run(epoch), other.run(epoch))
    same(alone[0].run(2, start=1), list(others[0].run(2))[1:])


def test_a_workers_memory_is_mapped_once(photos, tmp_path, monkeypatch):
    """Else each of a batch's pages would be a fault, in every batch."""
    opt = options("-depth 50 -batchSize 5 -nThreads 1", photos, tmp_path)
    train, _ = dataloader.create(opt, CPU)
    monkeypatch.setattr(train, "_to_device", lambda input: input.sum())  # reads all
    for epoch in (1, 2, 3):  # until then the process itself still grows
        list(train.run(epoch))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    count = sum(len(batch.target) for epoch in range(4, 10) for batch in train.run(epoch))
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    pages = count * 3 * 224 * 224 * 4 / resource.getpagesize()
    assert faults < pages / 10


def test_batches_are_pinned_on_the_way_to_a_gpu(photos, tmp_path, monkeypatch):
    """What torch's loader does there with each batch, a copy standing in for pinned memory."""
    opt = options("-depth 50 -batchSize 5 -nThreads 1", photos, tmp_path)
    expected = list(dataloader.create(opt, CPU)[0].run(1))
    train, _ = dataloader.create(opt, CPU)
    workers, moved, arrived = train.workers, train._to_device, []
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    monkeypatch.setattr(train, "workers", Pinning(workers))
    monkeypatch.setattr(train, "_to_device", lambda input: arrived.append(input) or moved(input))
    same(train.run(1), expected)
    assert arrived and not any(input.is_shared() for input in arrived)


class Pinning:
    """Torch's loader as if it had been asked for pinned memory."""

    def __init__(self, workers):
        self.workers = workers

    def __iter__(self):
        return map(pin_memory, self.workers)


def test_double_precision_and_ten_crops(photos, tmp_path):
    command = "-depth 50 -batchSize 20 -nThreads 0 -precision double -tenCrop true"
    train, val = dataloader.create(options(command, photos, tmp_path), CPU)
    input, target = next(iter(val.run(1)))[:2]
    assert input.shape == (20, 3, 224, 224) and len(target) == 2
    assert input.dtype == torch.float64 and val.crops == 10 and train.crops == 1
    # the sixth crop is the mirrored first: the centre, flipped
    assert np.array_equal(input[5].flip(2), input[0])


class Deadly:
    """A dataset whose worker comes to an end at an image."""

    def __init__(self, dataset, index, end):
        self.dataset, self.index, self.end = dataset, index, end

    def fast_path(self):
        prepare = self.dataset.fast_path()

        def deadly(i, draws, out):
            if i == self.index:
                self.end()
            return prepare(i, draws, out)

        return deadly

    def __getattr__(self, name):
        return getattr(self.dataset, name)


@pytest.fixture
def impatient(monkeypatch):
    """torch's loader looks for dead workers more often than every 5 s."""
    loader = torch.utils.data.dataloader._MultiProcessingDataLoaderIter
    monkeypatch.setattr(loader._try_get_data, "__defaults__", (0.2,))


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def out_of_memory():
    raise MemoryError


@pytest.mark.parametrize(
    "end, how", [(kill, "was killed by SIGKILL while reading "), (out_of_memory, "memory at ")]
)
def test_a_worker_that_dies_is_told_with_its_image(photos, tmp_path, impatient, end, how):
    opt = options("-depth 50 -batchSize 4 -nThreads 2", photos, tmp_path)
    train, _ = datasets.create(opt)
    loader = loader_of(Deadly(train, 7, end), opt, "train")
    with pytest.raises(InputError, match=f"{how}.*{re.escape(train.name(7))}.*-nThreads"):
        list(loader.run(1))


def test_an_idle_worker_that_dies_is_told(photos, tmp_path, impatient):
    opt = options("-depth 50 -batchSize 4 -nThreads 1", photos, tmp_path)
    train, _ = dataloader.create(opt, CPU)
    list(train.run(1))
    os.kill(int(train.current[0, 0]), signal.SIGKILL)
    with pytest.raises(InputError, match="was killed by SIGKILL between two batches"):
        list(train.run(2))


@pytest.mark.parametrize("name, number", [("Queue", 1), ("Event", 1), ("Queue", 2), ("Queue", 3)])
def test_a_full_shared_memory_while_workers_start(photos, tmp_path, monkeypatch, name, number):
    """One sentence, and nothing on stderr from torch's iterator, which was half made."""
    made, ignored, real = [], [], getattr(torch.multiprocessing, name)

    def make(*args):
        made.append(name)
        if len(made) == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    monkeypatch.setattr(torch.multiprocessing, name, make)
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    train, _ = dataloader.create(
        options("-depth 50 -batchSize 5 -nThreads 2", photos, tmp_path), CPU
    )
    with pytest.raises(InputError, match="no shared memory is left"):
        next(train.run(1))
    del train
    gc.collect()
    assert not ignored


class Arrays:
    """A dataset of 12 images, of one size."""

    step = 0

    def size(self):
        return 12

    def get(self, i):
        return np.arange(0.0, 3 * 8 * (8 + self.step * i)).reshape(3, 8, -1), i

    def transform(self):
        return lambda image, draws: image


class Stacked(Arrays):
    """Of 12 sizes; a batch is lists of tensors of any layout, dtype and size."""

    step = 1

    def stack(self, images):
        tensors = [torch.from_numpy(image)[None] for image in images]
        turned = [tensor.bool().transpose(1, 3)[:, ::2] for tensor in tensors]
        return [tensors, [[torch.arange(len(images))], turned, []], torch.empty(0, 3, 8, 8)]


BOTH = pytest.mark.parametrize("dataset", [Arrays(), Stacked()], ids=["array", "stack"])


def batches_of(dataset, workers, size=6):
    """All its batches; a loader that waits for ever is an error."""

    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    try:
        loader = dataloader.DataLoader(
            dataset, CPU, training=False, batch_size=size, workers=workers, dtype=torch.float64
        )
        return list(loader.run(1))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def flat(parts):
    """The tensors of nested lists."""
    return sum(map(flat, parts), []) if isinstance(parts, list) else [parts]


@contextlib.contextmanager
def limited(kind, limit):
    """A limit of this process and its workers."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def spare_files(count):
    """Let no more than so many files be opened."""
    gc.collect()
    used = {int(name) for name in os.listdir("/dev/fd")}
    free = (number for number in range(10**6) if number not in used)
    return limited(resource.RLIMIT_NOFILE, next(itertools.islice(free, count, None)))


@contextlib.contextmanager
def full(monkeypatch):
    """No room in /dev/shm for what a worker shares, and torch's words."""
    real = torch.UntypedStorage._share_fd_cpu_

    def share(storage, *args, **kwargs):
        if torch.utils.data.get_worker_info() and not storage.is_shared():
            name = "</torch_1_2_3>: No space left on device (28)"
            raise RuntimeError(f"unable to allocate shared memory(shm) for file {name}")
        return real(storage, *args, **kwargs)

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", share)
    yield


@BOTH
@pytest.mark.parametrize(
    "fault, sentence",
    [
        (full, "no shared memory is left for the loading workers' batches"),
        (lambda _: limited(resource.RLIMIT_FSIZE, 2000), "larger than the largest file"),
        (lambda _: spare_files(0), "too many open files .ulimit -n"),
        (lambda _: spare_files(9), "too many open files .ulimit -n"),
        (lambda _: spare_files(20), "too many open files .ulimit -n"),
    ],
    ids=["shm", "ulimit -f", "ulimit -n", "ulimit -n + 9", "ulimit -n + 20"],
)
def test_a_batch_that_cannot_be_passed_on(dataset, fault, sentence, monkeypatch, capfd):
    """One sentence; torch pickles in a thread, whose errors nobody sees."""
    with fault(monkeypatch), pytest.raises(InputError, match=sentence):
        batches_of(dataset, 1)
    assert capfd.readouterr().err == ""


@BOTH
def test_the_main_process_cannot_open_a_batch(dataset, monkeypatch):
    """It mostly is in a thread of torch's there, which must not end."""

    def loads(_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(workers, "pickle", types.SimpleNamespace(loads=loads))
    with pytest.raises(InputError, match="too many open files .ulimit -n"):
        batches_of(dataset, 1)


@BOTH
@pytest.mark.parametrize("length", [71, 76, 200])
def test_sockets_have_short_paths(dataset, length, tmp_path, monkeypatch):
    folder = tmp_path / ("x" * max(1, length - len(f"{tmp_path}/")))
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert sum(batch.count for batch in batches_of(dataset, 1)) == 12


@BOTH
def test_no_folder_for_sockets(dataset, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(InputError, match="folder for sockets .TMPDIR.; .* give -nThreads 0"):
        batches_of(dataset, 1)


def test_a_stack_from_a_worker_is_the_same_and_one_open_file():
    """Each tensor of its own would be one, and the default limit is 1024."""
    expected = batches_of(Stacked(), 0)
    with spare_files(50):
        found = batches_of(Stacked(), 1)
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected):
        one, other = flat(one.input), flat(other.input)
        assert len(one) == len(other) == 14
        for a, b in zip(one, other):
            assert a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)


def test_a_stack_is_pinned_as_one_buffer(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    parts = [torch.arange(5), [torch.rand(2, 3, 4, 4), torch.rand(3, 3)]]
    pinned = pin_memory(workers.SharedBatch.of(parts)).tensors()
    for one, other in zip(flat(pinned), flat(parts), strict=True):
        assert torch.equal(one, other) and not one.is_shared()
        assert one.untyped_storage().data_ptr() == pinned[0].untyped_storage().data_ptr()
