"""One-time preparation of CIFAR-10. Port of datasets/cifar10-gen.lua; cifar100_gen.py shares it.

Differs from the Lua: it downloads the authors' own archive, because the copy for Torch is gone.
-data may also name the dataset: the binary or the python version, as a folder or as an archive, or
a folder that holds one of these.
"""

import os
from typing import NamedTuple

import numpy as np

from datasets import cifar_files, download, in_memory
from runtime.errors import InputError
from runtime.terminal import note, say


class Version(NamedTuple):
    """One published version of a dataset: its names on disk, the archive's MD5, its files."""

    folder: str
    archive: str
    md5: str
    train: tuple
    val: tuple


class Source(NamedTuple):
    """One dataset as its authors publish it."""

    name: str
    torchvision: str  # its class in torchvision.datasets
    classes: int
    label_bytes: int  # before the pixels, in a record of the binary version
    label_key: str  # in the dict of the python version
    binary: Version
    python: Version


URL = "https://www.cs.toronto.edu/~kriz/"
SOURCE = Source(
    name="CIFAR-10",
    torchvision="CIFAR10",
    classes=10,
    label_bytes=1,
    label_key="labels",
    binary=Version(
        "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        ("test_batch.bin",),
    ),
    python=Version(
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        ("test_batch",),
    ),
)
is_valid = in_memory.is_valid


def signature(opt, source=SOURCE):
    """Where the images come from: the path with sizes and times, or the published archive."""
    if not opt.data:
        return f"{source.name} as published, MD5 {source.binary.md5}"
    place = _find(source, opt.data)
    paths = [place]
    if os.path.isdir(place):
        version = _version(source, _listing(place), place)
        paths = [os.path.join(place, name) for name in version.train + version.val]
    stats = [os.stat(path) for path in paths]
    marks = ", ".join(f"{stat.st_size} bytes at {stat.st_mtime_ns} ns" for stat in stats)
    return f"{os.path.realpath(place)}: {marks}"


def exec(opt, cache_file, source=SOURCE):
    """Find or download the dataset; save images and labels of both splits; returns the cache."""
    stamp = signature(opt, source)  # before reading: a file that changes meanwhile makes it stale
    place = _find(source, opt.data) if opt.data else _published(source, opt.gen)
    say(" | combining dataset into a single file")
    train, val = read(source, place)
    say(f" | saving {source.name} dataset to {cache_file}")
    return in_memory.save(cache_file, stamp, train, val)


def read(source, place):
    """(images, labels) of train, and of val, from a folder or an archive.

    Images are uint8 (N, 3, 32, 32), labels int64 (N,) from 0. Coarse labels are left out.
    """
    wanted = {n for v in (source.binary, source.python) for n in v.train + v.val}
    contents = (cifar_files.folder if os.path.isdir(place) else cifar_files.archive)(place, wanted)
    version = _version(source, contents, place)
    if version is None:
        raise InputError(f"{place} holds no {source.name}: should have {source.binary.train[0]}")
    md5 = _checksums(source) if version is source.python else {}

    def parse(name):
        data, where = contents[name], f"{name} of {place}"
        if version is source.python:
            return cifar_files.pickled(data, where, source.label_key, md5[name])
        return cifar_files.binary(data, where, source.label_bytes, source.classes)

    splits = []
    for names in (version.train, version.val):
        images, labels = zip(*(parse(name) for name in names))
        splits.append((np.concatenate(images), np.concatenate(labels)))
    return splits


def _checksums(source):
    """The MD5 of each file of the python version, as torchvision checks them: name -> MD5."""
    from torchvision import datasets  # not at the top: this takes a second

    published = getattr(datasets, source.torchvision)
    return dict(published.train_list + published.test_list)


def _published(source, gen):
    """The archive in -gen; downloaded if no archive there has the published checksum."""
    for version in (source.binary, source.python):
        path = os.path.join(gen, version.archive)
        if os.path.isfile(path):
            if download.checksum(path) == version.md5:
                return path
            note(f"=> {path} is not the published archive: its checksum differs")
    url, path = URL + source.binary.archive, os.path.join(gen, source.binary.archive)
    say(f"=> Downloading {source.name} dataset from {url}")
    try:
        download.fetch(url, path, source.binary.md5)
    except InputError as error:
        raise InputError(f"{error}, or name a folder that has the dataset: -data DIR") from None
    return path


def _find(source, data):
    """The folder or archive that holds the dataset: `data` itself, or one inside it."""
    if os.path.isfile(data):
        return data
    if not os.path.isdir(data):
        raise InputError(f"-data {data}: no such file or folder")
    versions = (source.binary, source.python)
    for place in [data] + [os.path.join(data, version.folder) for version in versions]:
        if os.path.isdir(place) and _version(source, _listing(place), place):
            return place
    for version in versions:
        if os.path.isfile(os.path.join(data, version.archive)):
            return os.path.join(data, version.archive)
    wanted = [name for version in versions for name in (version.folder, version.archive)]
    raise InputError(f"no {source.name} in -data {data}: should hold one of {', '.join(wanted)}")


def _version(source, names, place):
    """The version whose files are all among `names`; None if no file of either version is."""
    missing = {
        version: [name for name in version.train + version.val if name not in names]
        for version in (source.binary, source.python)
    }
    for version, absent in missing.items():
        if not absent:
            return version
    for version, absent in missing.items():
        if len(absent) < len(version.train + version.val):
            raise InputError(f"{place} has only a part of {source.name}: {absent[0]} is missing")
    return None


def _listing(folder):
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise InputError(f"cannot list {folder}: {error.strerror}") from None
    return {name for name in names if os.path.isfile(os.path.join(folder, name))}
