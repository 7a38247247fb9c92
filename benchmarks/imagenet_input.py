"""How fast one core makes training input of photos, beside torchvision, timm and decoding alone.

    taskset -c 0 python benchmarks/imagenet_input.py [FOLDER] [-all]

FOLDER holds photos, in subfolders or not, such as ImageNet's. Of each photo the file is read and
made a float32 tensor (3, 224, 224). Unless -all is given, photos with sides above 640 pixels are
left out: ImageNet has few, and they are all decoding.
"""

import contextlib
import os
import sys
from types import SimpleNamespace

import project  # noqa: F401  before all else: sets the path, names a missing package

# isort: split

import numpy as np
import simplejpeg
import timing
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import transforms as tv

from datasets import image_folder, imagenet
from datasets.draws import Draws
from datasets.image import decoding, turbojpeg

NO_TURBOJPEG = (turbojpeg, "decoder", lambda: None)
NO_SIMPLEJPEG = (decoding, "simplejpeg", None)
NO_NUMBA = (image_folder, "compiled_kernels", lambda: None)
NORMALIZE = [tv.ToTensor(), tv.Normalize(imagenet.mean, imagenet.std)]


def files(folder, everything):
    """Paths of the photos."""
    paths = sorted(os.path.join(place, n) for place, _, names in os.walk(folder) for n in names)
    paths = [p for p in paths if p.lower().endswith((".jpg", ".jpeg"))]
    if not everything:
        paths = [p for p in paths if max(Image.open(p).size) <= 640]
    if not paths:
        sys.exit(f"{folder} holds no photos (.jpg, .jpeg)")
    return paths


def dataset(paths):
    """Ours, of these files."""
    info = {"train_paths": np.array([os.fsencode(os.path.abspath(p)) for p in paths])}
    info["train_targets"] = np.zeros(len(paths), np.int64)
    options = SimpleNamespace(data="", tenCrop=False, testScale=256, testCrop=224, trainCrop=224)
    return imagenet.create(info, options, "train")


def fast(ours):
    """{name: (its function of (i, draws), the modules and names it does without)}.

    As it is here; and without libturbojpeg, then also without simplejpeg, numba, or both.
    """
    ways = {"ours": (ours.fast_path(), ())}
    without = {
        "ours, without libturbojpeg": [NO_TURBOJPEG],
        "ours, without libturbojpeg, simplejpeg": [NO_TURBOJPEG, NO_SIMPLEJPEG],
        "ours, without libturbojpeg, numba": [NO_TURBOJPEG, NO_NUMBA],
        "ours, without all three": [NO_TURBOJPEG, NO_SIMPLEJPEG, NO_NUMBA],
    }
    for name, absent in without.items():
        with lacking(absent):
            ways[name] = (ours.fast_path(), absent)
    return ways


@contextlib.contextmanager
def lacking(absent):
    """Within the block, each (module, name, value) is set."""
    before = [(module, name, getattr(module, name)) for module, name, _ in absent]
    for module, name, value in absent:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def check(ours, prepare):
    """The largest difference between our fast way and the plain transforms."""
    preprocess, worst = ours.transform(), 0
    for i in range(ours.size()):
        plain = preprocess(ours.get(i)[0], Draws(1, 1, i))
        worst = max(worst, float(abs(prepare(i, Draws(1, 1, i))[0] - plain).max()))
    if worst > 1e-5:
        sys.exit(f"our fast input differs from the plain transforms by {worst}")
    return worst


def with_pillow(transform):
    """What a data set of torchvision does."""

    def prepare(path):
        with open(path, "rb") as file:
            return transform(Image.open(file).convert("RGB"))

    return prepare


class Lighting:
    """The PCA noise as ports of this recipe write it; torchvision has none."""

    values, vectors = torch.tensor(image_folder.EIGVAL), torch.tensor(image_folder.EIGVEC)

    def __call__(self, image):
        return image + (self.vectors * torch.randn(3) * 0.1 * self.values).sum(1)[:, None, None]


def peers():
    """{name: function of a path}."""
    same = [tv.RandomResizedCrop(224, interpolation=tv.InterpolationMode.BICUBIC)]
    same += [tv.ColorJitter(0.4, 0.4, 0.4), NORMALIZE[0], Lighting(), NORMALIZE[1]]
    plain = [tv.RandomResizedCrop(224), tv.RandomHorizontalFlip(), *NORMALIZE]
    timms = create_transform(
        224, is_training=True, color_jitter=0.4, mean=imagenet.mean, std=imagenet.std
    )
    return {
        "torchvision, the same operations": tv.Compose([*same, tv.RandomHorizontalFlip()]),
        "torchvision, bilinear crop and flip": tv.Compose(plain),
        "timm create_transform": timms,
        "decoding by Pillow": np.asarray,
    }


def decode(path):
    """The least that must be done, by libjpeg-turbo without Pillow."""
    with open(path, "rb") as file:
        return simplejpeg.decode_jpeg(file.read(), "RGB")


def each(items, function, absent=()):
    """A function that goes through all items and keeps nothing, as a loader would not."""

    def run():
        with lacking(absent):
            for item in items:
                function(item)

    return run


def first_reading(ours, run):
    """As `run`, with every photo checked for damage, which is done once."""

    def again():
        ours.checked[:] = 0
        run()

    return again


def main():
    torch.set_num_threads(1)
    folders = [a for a in sys.argv[1:] if a != "-all"] or ["."]
    paths = files(folders[0], "-all" in sys.argv)
    ours = dataset(paths)
    ways = {}
    for name, (prepare, absent) in fast(ours).items():
        print(f"{name}: {check(ours, prepare):.1e} off the plain transforms, {len(paths)} photos")
        prepared = each(range(len(paths)), lambda i, p=prepare: p(i, Draws(1, 1, i)), absent)
        ways[name] = prepared
    ways["ours, photos not read before"] = first_reading(ours, ways["ours"])
    print()
    ways |= {name: each(paths, with_pillow(function)) for name, function in peers().items()}
    ways["decoding by simplejpeg"] = each(paths, decode)
    rounds = max(3, min(15, 4000 // (len(paths) * len(ways))))
    times, about = timing.compare(ways, rounds), f"{len(paths)} photos"
    timing.rate_table(times, "ours", len(paths), "images", setting=about, layout="")
    print(timing.machine("torchvision", "timm", "pillow", "simplejpeg", "numba", "numpy"))


if __name__ == "__main__":
    main()
