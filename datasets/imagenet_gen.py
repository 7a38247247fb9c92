"""One-time preparation of ImageNet, or of any folder laid out like it: the list of its images.

Port of datasets/imagenet-gen.lua. Differs from the Lua: the list is sorted, where the file system
gave the order; hidden files and folders are left out; an image in the wrong place is named; names
may hold any byte; .pgm, .tif, .tiff and .webp are images too (as for torchvision's ImageFolder); to
test a model, val alone will do.
"""

import hashlib
import os
import struct

import numpy as np

from runtime.errors import InputError
from runtime.terminal import say, show
from storage import atomic

LAYOUT = "-data must hold train/<class>/<image> and val/<class>/<image>"
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_ENDINGS = tuple(extension.encode() for extension in EXTENSIONS)


def classes(opt):
    """Names of the class folders of the training images in order; their places are the targets.

    Of the validation images, if there are no others and only a test is to be made.
    """
    folder = _split(opt, _splits(opt)[0])
    names = sorted(name for name, is_folder in _entries(folder) if is_folder)
    if not names:
        raise InputError(f"no class folders in {os.fsdecode(folder)!r}: {LAYOUT}")
    return [os.fsdecode(name) for name in names]


def signature(opt):
    """A line that changes when an image or a class comes, goes or gets another name.

    All of this changes the time of a class folder, so that no image need be looked at.
    """
    digest, count = hashlib.sha256(), 0
    for split in _splits(opt):
        folder = _split(opt, split)
        for name, is_folder in sorted(_entries(folder)):
            if is_folder:
                time = os.stat(os.path.join(folder, name)).st_mtime_ns
                digest.update(b"%s/%s\0%d\0" % (split.encode(), name, time))
                count += 1
    return f"{os.path.abspath(opt.data)}: {count} folders, {digest.hexdigest()}"


def exec(opt, cache_file):
    """List the images of both splits and save paths, classes and class names to `cache_file`.

    `train_paths`, `val_paths`: bytes (N,), "class/image" below the split's folder, as the file
    system has them; `train_targets`, `val_targets`: int64 (N,) from 0; `classes`: bytes (C,).
    """
    mark = signature(opt)  # before the search: what changes during it makes the list stale
    say("=> Generating list of images")
    names = [os.fsencode(name) for name in classes(opt)]
    numbers = {name: number for number, name in enumerate(names)}
    say(" | finding all validation images")
    val_paths, val_targets = _images(_split(opt, "val"), numbers)
    train_paths, train_targets = np.zeros(0, "S1"), np.zeros(0, np.int64)
    if "train" in _splits(opt):
        say(" | finding all training images")
        train_paths, train_targets = _images(_split(opt, "train"), numbers)
    say(f" | saving list of images to {cache_file}")
    with atomic.replacing(cache_file) as file:
        np.savez(  # 40 bytes an image; to compress them takes as long as to find them
            file,
            signature=np.array(mark),
            classes=np.array(names),
            train_paths=train_paths,
            train_targets=train_targets,
            val_paths=val_paths,
            val_targets=val_targets,
        )


def _splits(opt):
    """The splits that are listed."""
    alone = opt.testOnly and opt.data and not os.path.isdir(os.path.join(opt.data, "train"))
    return ("val",) if alone else ("train", "val")


def _split(opt, split):
    """The folder of a split, in bytes: file names need not be valid text."""
    if not opt.data:
        raise InputError(f"-data is missing: {LAYOUT}")
    folder = os.path.join(opt.data, split)
    for path in (opt.data, folder):
        if not os.path.isdir(path):
            raise InputError(f"{path!r} is not a folder: {LAYOUT}")
    return os.fsencode(folder)


def _entries(folder):
    """(name, is it a folder) of everything that is not hidden; links count as what they lead to."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not _is_hidden(entry.name):
                    yield entry.name, entry.is_dir()
    except OSError as error:
        raise _unlisted(folder, error) from None


def _unlisted(folder, error):
    return InputError(f"cannot list {os.fsdecode(folder)!r}: {error.strerror}")


def _is_hidden(name):
    return name[0] == ord(".")


def _is_image(name):
    return name.lower().endswith(_ENDINGS)


def _images(folder, numbers):
    """Paths and targets of a split, sorted: bytes (N,) and int64 (N,)."""
    found, targets, count = [], [], 0
    entries = sorted(_entries(folder))
    for n, (name, is_folder) in enumerate(entries):
        show(f" {count} images in {n} of {len(entries)} folders")
        path = os.path.join(folder, name)
        if not is_folder:
            if _is_image(name):
                raise _misplaced(path)
            continue
        images = _class_images(folder, name)
        if not len(images):
            continue
        if name not in numbers:
            raise InputError(
                f"class not found: {os.fsdecode(path)!r} holds images but has no twin in train; "
                + LAYOUT
            )
        found.append((name, images))
        count += len(images)
        targets.append(numbers[name])
    show("")
    if not found:
        ending = " ".join(EXTENSIONS)
        raise InputError(f"no images ({ending}) in {os.fsdecode(folder)!r}: {LAYOUT}")
    counts = [len(images) for _, images in found]
    return _paths(found), np.repeat(np.array(targets, np.int64), counts)


def _class_images(folder, name):
    """The names of the images of one class, sorted, bytes (N,); none may lie deeper.

    An array at once: while they are in the processor's cache all this takes half as long.
    """
    path = os.path.join(folder, name)
    try:
        names = os.listdir(path)
    except OSError as error:
        raise _unlisted(path, error) from None
    plain = _are_plain(names)
    # A folder that counts 2 (its own entry and ".") holds no folders, but perhaps links to some
    if not plain or os.stat(path).st_nlink != 2:
        folders = {name for name, is_folder in _entries(path) if is_folder}
        for file in sorted(folders):
            # A link that leads back up is no deeper folder
            stray = _first_image(os.path.join(path, file), {_identity(folder), _identity(path)})
            if stray is not None:
                raise _misplaced(stray)
        names = [n for n in names if _is_image(n) and not _is_hidden(n) and n not in folders]
    width = len(max(names, key=len, default=b"-"))
    packed = struct.pack(f"{width}s" * len(names), *names)  # np.array looks at each name twice
    names = np.frombuffer(packed, f"S{width}")
    return names[np.argsort(names)]


def _are_plain(names):
    """Whether all are names of images of one kind and none is hidden, without a look at each."""
    ending = os.path.splitext(names[0])[1] if names else b""
    text = b"\0" + b"\0".join(names) + b"\0"
    same = ending.lower() in _ENDINGS and text.count(ending + b"\0") == len(names)
    return same and b"\0." not in text


def _paths(classes):
    """(name, its images) of each class as "class/image": bytes (N,)."""
    parts = [(name + b"/", images) for name, images in classes]
    width = max(len(start) + images.itemsize for start, images in parts)
    paths = np.zeros(sum(len(images) for _, images in parts), f"S{width}")
    letters, at = paths.view(np.uint8).reshape(-1, width), 0
    for start, images in parts:  # by columns: a string at a time would take ten times as long
        rows, end = letters[at : at + len(images)], len(start) + images.itemsize
        rows[:, : len(start)] = np.frombuffer(start, np.uint8)
        rows[:, len(start) : end] = images.view(np.uint8).reshape(len(images), -1)
        at += len(images)
    return paths


def _first_image(folder, seen):
    """Some image at any depth below a folder, or None; no folder of `seen` is entered."""
    identity = _identity(folder)
    if identity in seen:
        return None
    seen.add(identity)
    for name, is_folder in sorted(_entries(folder)):
        path = os.path.join(folder, name)
        found = _first_image(path, seen) if is_folder else path if _is_image(name) else None
        if found is not None:
            return found
    return None


def _identity(folder):
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _misplaced(path):
    return InputError(f"{os.fsdecode(path)!r} is not directly inside a class folder: {LAYOUT}")
