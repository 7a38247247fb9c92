"""How fast training batches of photos come out of the loader, and out of torch's for peers.

    python benchmarks/loader.py FOLDER [WORKERS]        (default: one worker)

FOLDER is as for imagenet_input.py, which times the same work without a loader. Here images come
from workers, in batches, to a main process that does nothing but bring them into channels_last, as
ours always are; what that and receiving them costs it is in the last column. The loader of the
peers keeps its workers between epochs as ours does.
"""

import sys
import time

import project  # noqa: F401  before all else: sets the path, names a missing package

# isort: split

import imagenet_input
import timing
import torch
from torch.utils import data

from dataloader import DataLoader
from datasets.draws import Draws

BATCH, BATCHES, ROUNDS = 32, 32, 5
ALONE = "ours, the images alone, here"


def ours(paths, workers):
    """A function that goes through one epoch of ours."""
    loader = DataLoader(
        *(imagenet_input.dataset(paths), torch.device("cpu")),
        **{"training": True, "batch_size": BATCH, "seed": 1, "workers": workers},
    )
    return lambda: exhaust(loader.run(1))


def theirs(paths, transform, workers):
    """The same of torch's loader, over what torchvision's and timm's data sets do."""
    photos = Photos(paths, imagenet_input.with_pillow(transform))
    kept = workers > 0
    loader = data.DataLoader(
        photos, BATCH, shuffle=True, num_workers=workers, persistent_workers=kept
    )
    return lambda: exhaust(images.to(memory_format=torch.channels_last) for images, _ in loader)


def exhaust(batches):
    """Take all batches and keep none."""
    for _ in batches:
        pass


class Photos(data.Dataset):
    """Paths and a function, as a data set with one class."""

    def __init__(self, paths, prepare):
        self.paths, self.prepare = paths, prepare

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return self.prepare(self.paths[i]), 0


def received(way):
    """Microseconds of this process's time for an image."""
    began = time.process_time()
    way()
    return (time.process_time() - began) / (BATCH * BATCHES) * 1e6


def main():
    torch.set_num_threads(1)
    if len(sys.argv) < 2:
        sys.exit("loader.py: a folder with photos is missing")
    workers = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    found = imagenet_input.files(sys.argv[1], False)
    paths = (found * (BATCH * BATCHES // len(found) + 1))[: BATCH * BATCHES]
    prepare = imagenet_input.dataset(paths).fast_path()
    alone = imagenet_input.each(range(len(paths)), lambda i: prepare(i, Draws(1, 1, i)))
    ways = {"ours": ours(paths, workers), ALONE: alone}
    peers = imagenet_input.peers()
    del peers["decoding by Pillow"]
    ways |= {name: theirs(paths, transform, workers) for name, transform in peers.items()}
    times = timing.compare(ways, ROUNDS)
    print(f"{len(paths)} photos in batches of {BATCH}, {workers} workers\n")
    rows = [
        (
            name,
            f"{len(paths) / timing.median(times, name):,.4g}",
            f"{timing.ratio(times, 'ours', name):.2f}",
            "" if name == ALONE else f"{received(way):.0f}",
        )
        for name, way in ways.items()
    ]
    heads = ("what", "images/s", "ours: times as fast", "main process, us an image")
    timing.table(heads, rows, setting=f"{len(paths)} photos, {workers} workers")
    print(timing.machine("torchvision", "timm", "pillow", "simplejpeg", "numba", "numpy"))


if __name__ == "__main__":
    main()
