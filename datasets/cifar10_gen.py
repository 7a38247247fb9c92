"""One-time preparation of CIFAR-10. Port of datasets/cifar10-gen.lua; cifar100_gen.py shares it.

Differs from the Lua: it downloads the authors' own archive, because the copy for Torch is gone.
-data may also name the dataset: the binary or the python version, as a folder or as an archive; the
cache that the Lua made of it, cifar10.t7; or a folder that holds one of these. The Lua's cache is
found in -gen as well.

An archive is unpacked, and a pickle read, only if its MD5 is the published one: a stranger's file
can run nothing and fill no memory. torchvision's download is not used because it has no limit of
size or time and leaves a broken file behind.
"""

import hashlib
import io
import os
import pickle
import tarfile
from typing import NamedTuple

import numpy as np

from datasets import download, in_memory
from runtime import regular_files
from runtime.errors import InputError
from runtime.terminal import note, say
from storage import atomic


class Version(NamedTuple):
    """One published version of a dataset."""

    folder: str
    archive: str
    md5: str  # of the archive


class Source(NamedTuple):
    """One dataset as its authors publish it."""

    name: str
    classes: int
    label_bytes: int  # before the pixels, in a record of the binary version
    label_key: str  # in the dict of the python version
    train: list  # files; those of the binary version end in .bin
    val: list
    versions: list  # binary, which is the one to download, and python


URL = "https://www.cs.toronto.edu/~kriz/"
LARGEST = 1 << 28  # bytes of a file or a download; the largest published file has 187 million
PIXELS = 3 * 32 * 32
BATCHES = [f"data_batch_{i}" for i in range(1, 6)]
VERSIONS = [
    Version("cifar-10-batches-bin", "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
    Version("cifar-10-batches-py", "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
]
SOURCE = Source("CIFAR-10", 10, 1, "labels", BATCHES, ["test_batch"], VERSIONS)


def signature(opt, source=SOURCE):
    """Where the images come from: the path with sizes and times, or the published archive."""
    place, paths = _find(source, opt)
    if not paths:
        return f"{source.name} as published, MD5 {source.versions[0].md5}"
    stats = [os.stat(path) for path in paths]
    marks = ", ".join(f"{stat.st_size} bytes at {stat.st_mtime_ns} ns" for stat in stats)
    return f"{os.path.realpath(place)}: {marks}"


def exec(opt, cache_file, source=SOURCE):
    """Find or download the dataset; save images and labels of both splits; returns the cache."""
    stamp = signature(opt, source)  # before reading: a change meanwhile makes it stale
    place, paths = _find(source, opt)
    if place.endswith(".t7"):
        splits = _torch7(source, place)
    else:
        read = {os.path.basename(p): regular_files.read_bytes(p, LARGEST) for p in paths}
        if not paths:
            read = _published(source, opt.gen)
        elif paths == [place]:
            read = _unpack(source, read.popitem()[1], place)
        splits = _splits(source, read, place)
    say(" | combining dataset into a single file")
    found = len(np.unique(splits[0][1]))
    if found < source.classes:
        note(
            f"=> {place} has training images of only {found} of the {source.classes} classes of "
            f"{source.name}, but the net has outputs for all {source.classes}"
        )
    say(f" | saving {source.name} dataset to {cache_file}")
    return in_memory.save(cache_file, stamp, *splits)


def _splits(source, files, place):
    """(images, labels) of both splits from files, name -> bytes, that lie at `place`."""
    ending, read = ("", _pickled) if source.val[0] in files else (".bin", _binary)
    splits = []
    for names in (source.train, source.val):
        parts = [read(source, files[n + ending], f"{n}{ending} of {place}") for n in names]
        splits.append([np.concatenate(arrays) for arrays in zip(*parts)])
    return splits


def _torch7(source, path):
    """(images, labels) of both splits from the cache of the Lua, whose labels begin at 1."""
    from formats import model_files  # not at the top: most runs need no torch here

    tree, splits = model_files.load_t7(path), []
    for name in ("train", "val"):
        try:
            images, labels = (tree.get(name).get(key).numpy() for key in ("data", "labels"))
            is_split = (
                images.dtype == labels.dtype == np.uint8
                and (images.shape, labels.shape) == ((len(labels), 3, 32, 32), (len(labels),))
                and 1 <= labels.min() <= labels.max() <= source.classes
            )
        except (AttributeError, TypeError, ValueError):  # ValueError: no labels
            is_split = False
        if not is_split:
            raise InputError(
                f"{path} is not a cache of {source.name} from the Lua program: {name} should "
                f"have bytes data (N, 3, 32, 32) and labels (N) in 1 to {source.classes}"
            )
        splits.append([images, labels.astype(np.int64) - 1])
    return splits


def _binary(source, data, where):
    """(images, labels) from a file of the binary version, a sequence of records.

    A record is `label_bytes` bytes of labels, then the pixels. Images are uint8 (N, 3, 32, 32), red
    plane first. Labels are int64 (N,) in 0..classes-1: the last label of each record, because
    CIFAR-100 stores the coarse one before the fine one. `where` names the file in errors.
    """
    record = source.label_bytes + PIXELS
    if not data or len(data) % record:
        right = f"it should have records of {record} bytes, one per image"
        raise InputError(f"{where} has {len(data)} bytes: {right}")
    records = np.frombuffer(data, np.uint8).reshape(-1, record)
    labels, last = records[:, source.label_bytes - 1].astype(np.int64), source.classes - 1
    if labels.max() > last:
        raise InputError(f"{where} has a label {labels.max()}: labels are 0 to {last}")
    return records[:, source.label_bytes :].reshape(-1, 3, 32, 32), labels


def _pickled(source, data, where):
    """The same from a file of the python version, whose MD5 must be the published one.

    Reading a pickle can run code, so only the published bytes, which run none, are unpickled. MD5
    is enough for that: nobody can make another file to match a checksum that is given.
    """
    from torchvision import datasets  # not at the top: this takes a second

    listed = getattr(datasets, source.name.replace("-", ""))
    published = dict(listed.train_list + listed.test_list)[where.partition(" ")[0]]
    if _md5(data) != published:
        raise InputError(
            f"{where} is not the published file (its MD5 is {_md5(data)}, should be {published}); "
            "put changed images, or your own, into the binary version"
        )
    content = pickle.loads(data, encoding="latin1")  # the files were written by Python 2
    return content["data"].reshape(-1, 3, 32, 32), np.array(content[source.label_key], np.int64)


def _find(source, opt):
    """(place, paths): the folder or archive, -data or in it, and the paths of its files.

    Without -data, the Lua's cache in -gen, or -gen and no paths if there is none.
    """
    data, lua_cache = opt.data, source.name.replace("-", "").lower() + ".t7"
    if not data:
        place = os.path.join(opt.gen, lua_cache)
        return (place, [place]) if os.path.isfile(place) else (opt.gen, [])
    if os.path.isfile(data):
        return data, [data]
    if not os.path.isdir(data):
        raise InputError(f"-data {data}: no such file or folder")
    fault = ""
    for folder in ["", *(version.folder for version in source.versions)]:
        place = os.path.join(data, folder) if folder else data
        for ending in (".bin", ""):
            paths = [os.path.join(place, name + ending) for name in source.train + source.val]
            missing = [os.path.basename(path) for path in paths if not os.path.isfile(path)]
            if not missing:
                return place, paths
            if len(missing) < len(paths) and not fault:
                fault = f"{place} has only part of {source.name}: {missing[0]} is missing"
    for name in (*(version.archive for version in source.versions), lua_cache):
        place = os.path.join(data, name)
        if os.path.isfile(place):
            return place, [place]
    wanted = [name for version in source.versions for name in (version.folder, version.archive)]
    raise InputError(
        fault or f"no {source.name} in -data {data}, which should have one of {', '.join(wanted)}"
    )


def _unpack(source, data, where):
    """The files of an archive, name -> bytes, if it is a published one. `where` names it."""
    published = [version.md5 for version in source.versions]
    if _md5(data) not in published:
        raise InputError(
            f"{where} is not a published archive of {source.name} (its MD5 is {_md5(data)}, should "
            f"be {' or '.join(published)}); images of your own can be read from a folder"
        )
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {m.name.rpartition("/")[2]: tar.extractfile(m).read() for m in tar if m.isfile()}


def _published(source, gen):
    """The files of the archive in -gen; without a published one there, it is downloaded."""
    for version in source.versions:
        path = os.path.join(gen, version.archive)
        if os.path.isfile(path):
            try:
                return _unpack(source, regular_files.read_bytes(path, LARGEST), path)
            except InputError as error:
                note(f"=> {error}")
    archive = source.versions[0].archive
    url, path = URL + archive, os.path.join(gen, archive)
    say(f"=> Downloading {source.name} dataset from {url}")
    try:
        data = download.fetch(url, LARGEST)
        files = _unpack(source, data, url)
    except InputError as error:
        raise InputError(
            f"{error}; get the file by other means and put it at {path}, or name a folder that has "
            "the dataset: -data DIR"
        ) from None
    with atomic.replacing(path) as file:
        file.write(data)
    return files


def _md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()  # allowed under FIPS as well
