"""One-time preparation of ImageNet, or of any folder laid out like it: the list of its images.

Port of datasets/imagenet-gen.lua. Differs from the Lua: the list is sorted, where the Lua had the
file system's order; hidden files and folders are left out; an image in the wrong place is an error
that names the image; names may hold any byte; .pgm, .tif, .tiff, .webp, .avif and .jp2 are images
too; -testOnly needs no training images.

torchvision's make_dataset takes 2.5 times as long, and its list of tuples 3 times the memory.
"""

import contextlib
import hashlib
import operator
import os
import zlib
from collections import Counter

import numpy as np

from datasets import image_lists
from datasets.class_names import normalized
from runtime.errors import InputError
from runtime.terminal import note, say, show
from storage import atomic

LAYOUT = (
    "-data must hold train/<class>/<image> and val/<class>/<image>, or with -valShare "
    "<class>/<image>"
)
EXTENSIONS = tuple(".jpg .jpeg .png .ppm .bmp .pgm .tif .tiff .webp .avif .jp2".split())
_ENDINGS = tuple(extension.encode() for extension in EXTENSIONS)
# Folders that systems and archives add
_SYSTEM = {b"__MACOSX", b"@eaDir", b"lost+found", b"$RECYCLE.BIN", b"System Volume Information"}


def classes(opt):
    """Names of the class folders in order. The target of an image is the index of its class here.

    The folders are those of train, or of val for -testOnly where train has none; likewise a list's.
    """
    split = _splits(opt)[0]
    path, folder = image_lists.find(opt, split), folder_of(opt, split)
    if path:
        return image_lists.classes(path)
    names = class_folders(folder)
    if not names:
        raise InputError(f"no class folders in {os.fsdecode(folder)!r}: {LAYOUT}")
    if opt.classOrder == "number":
        other = next((name for name in names if not name.isdigit()), None)
        if other is not None:
            path = os.fsdecode(os.path.join(folder, other))
            raise InputError(f"-classOrder number: the name of {path!r} should be a whole number")
        names.sort(key=int)
    names = [normalized(name) for name in names]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        place = os.fsdecode(folder)
        raise InputError(f"{place!r} has two folders {twice[0]!r}, with accents coded differently")
    return names


def signature(opt):
    """A line that changes when an image or a class is added, removed or renamed.

    Each of these changes the modification time of a class folder, so no image is looked at. Where
    times do not change (mounted object stores, squashfs), the number of entries in a folder does.
    A list counts by its content.
    """
    digest, count = hashlib.sha256(), 0
    for split in _splits(opt):
        path, folder = image_lists.find(opt, split), folder_of(opt, split)
        if path:
            digest.update(f"{split} {image_lists.digest(path)}\0".encode())
            continue
        for name in class_folders(folder):
            path = os.path.join(folder, name)
            with _listing(path):  # listdir is 3 times as fast as `_entries`
                about = os.stat(path).st_mtime_ns, len(os.listdir(path))
            digest.update(b"%s/%s\0%d\0%d\0" % (split.encode(), name, *about))
            count += 1
    place = os.path.realpath(opt.data)
    return f"{place}: {count} folders by {opt.classOrder}, {digest.hexdigest()}"


def exec(opt, cache_file):
    """List the images of both splits; save paths, classes and class names, and return them.

    `train_paths`, `val_paths`: bytes (N,), "class/image" below the split's folder, as the file
    system has them, or of a list, below -data or absolute; `train_targets`, `val_targets`: int64
    (N,) from 0; `classes`: bytes (C,); `checksum`.
    """
    stamp = signature(opt)  # before the search: a change during the search makes the list stale
    say("=> Generating list of images")
    names = classes(opt)
    numbers = {name: number for number, name in enumerate(names)}
    info = {
        "signature": np.array(stamp),
        "classes": np.array([os.fsencode(name) for name in names]),
    }
    for split, kind in (("val", "validation"), ("train", "training")):
        paths, targets = np.zeros(0, "S1"), np.zeros(0, np.int64)
        if split in _splits(opt):
            say(f" | finding all {kind} images")
            paths, targets = _images(opt, split, numbers)
            if not _may_be_empty(opt, split):
                _note_empty(names, targets, kind)
        info |= {f"{split}_paths": paths, f"{split}_targets": targets}
    _note_repeated(opt, info)
    say(f" | saving list of images to {cache_file}")
    info["checksum"] = np.array(_checksum(info))
    with atomic.replacing(cache_file) as file:
        np.savez(file, **info)  # 40 bytes an image; compressing takes as long as the search
    return info


def is_valid(info, facts, opt):
    """Whether `exec` wrote these arrays, and found the images that this run needs."""
    is_own = info.get("checksum") == _checksum(info)
    return is_own and (len(info["train_paths"]) > 0 or _may_be_empty(opt, "train"))


def _checksum(info):
    """A checksum of the arrays, their names and their types."""
    arrays = sorted((name, array) for name, array in info.items() if name != "checksum")
    parts = [(name, a.dtype.str, a.shape, zlib.crc32(a.tobytes())) for name, a in arrays]
    return zlib.crc32(repr(parts).encode())


def _note_empty(names, targets, kind):
    """Note which classes have no image of this kind."""
    counts = np.bincount(targets, minlength=len(names))
    empty = [name for name, count in zip(names, counts) if not count]
    if empty:
        note(f"=> {len(empty)} of {len(names)} classes have no {kind} image: {_few(empty)}")


def _note_repeated(opt, info):
    """Note which images a list has more than once, and which both lists have."""
    paths = {split: info[f"{split}_paths"] for split in ("train", "val")}
    lists = {split: path for split in paths if (path := image_lists.find(opt, split))}
    for split, path in lists.items():
        found, counts = np.unique(paths[split], return_counts=True)
        _note_images(f"{path} has more than once", found[counts > 1])
    if len(lists) == 2:
        _note_images(f"{' and '.join(lists.values())} both have", np.intersect1d(*paths.values()))


def _note_images(what, paths):
    if len(paths):
        images = "1 image" if len(paths) == 1 else f"{len(paths)} images"
        note(f"=> {images} {what}: {_few([os.fsdecode(path) for path in paths[:4].tolist()])}")


def _few(names):
    """The first three names, quoted, and whether there are more."""
    return ", ".join(repr(name) for name in names[:3]) + ", ..." * (len(names) > 3)


def _splits(opt):
    """The splits to list. Where there is no val, -valShare or -fold makes it of train."""
    train, val = (folder_of(opt, split) for split in ("train", "val"))
    if not (image_lists.find(opt, "val") or os.path.isdir(val)):
        return ("train",)
    has_classes = image_lists.find(opt, "train") or (os.path.isdir(train) and class_folders(train))
    return ("train", "val") if has_classes or not opt.testOnly else ("val",)


def _may_be_empty(opt, split):
    return opt.testOnly and split == "train"


def folder_of(opt, split):
    """The path of a split, as bytes: file names need not be valid text.

    A folder without train/ and val/ is one folder of classes, of training images. The paths of a
    list are below -data.
    """
    if image_lists.find(opt, split):
        return os.fsencode(opt.data)
    paths = {name: os.path.join(opt.data, name) for name in ("train", "val")}
    flat = split == "train" and not places(opt) and not any(map(os.path.isdir, paths.values()))
    return os.fsencode(opt.data if flat else paths[split])


def places(opt):
    """The lists that are given, by which caches of the same -data differ."""
    return list(filter(None, (image_lists.find(opt, split) for split in ("train", "val"))))


def class_folders(folder):
    """The names of the folders in a folder, sorted; without hidden ones."""
    return sorted(name for name, is_folder in _entries(folder) if is_folder)


def _entries(folder):
    """(name, whether it is a folder) of every entry that is not hidden. Links are followed."""
    with _listing(folder), os.scandir(folder) as entries:
        return [(e.name, e.is_dir()) for e in entries if not is_hidden(e.name)]


@contextlib.contextmanager
def _listing(folder):
    """Turn an OSError into the sentence that this folder cannot be listed."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot list {os.fsdecode(folder)!r}: {error.strerror}") from None


def is_hidden(name):
    """Whether a file or folder is none of the user's: hidden, or added by a system."""
    name = os.fsencode(name)
    return name[:1] == b"." or name in _SYSTEM


def _is_image(name):
    return name.lower().endswith(_ENDINGS)


def _images(opt, split, numbers):
    """Paths and targets of a split, bytes (N,) and int64 (N,); sorted by path, or as listed."""
    if image_lists.find(opt, split):
        listed, numbers = image_lists.images(opt, split, list(numbers))
        return np.array(listed), np.array(numbers, np.int64)
    folder, count, others = folder_of(opt, split), 0, []
    paths, targets = [np.zeros(0, "S1")], [np.zeros(0, np.int64)]
    entries = sorted(_entries(folder))
    for n, (name, is_folder) in enumerate(entries):
        show(f" {count} images in {n} of {len(entries)} folders")
        path = os.path.join(folder, name)
        if not is_folder:
            if _is_image(name):
                raise _misplaced(path)
            continue
        images = _class_images(folder, name, others, opt.skipCorrupt)
        if not len(images):
            continue
        number = numbers.get(normalized(name))
        if number is None:
            raise InputError(
                f"class not found: {os.fsdecode(path)!r} holds images, but train has no folder "
                f"with that name; {LAYOUT}"
            )
        paths.append(np.char.add(name + b"/", images))
        targets.append(np.full(len(images), number, np.int64))
        count += len(images)
    show("")
    endings = " ".join(EXTENSIONS)
    if others:
        count = f"{len(others)} file" + "s" * (len(others) > 1)
        left = f"left out {count} without an image ending ({endings}): {_few(others)}"
        note(f"=> {left}; export HEIC and others as JPEG")
    if len(paths) == 1 and not _may_be_empty(opt, split):
        raise InputError(f"no images ({endings}) in {os.fsdecode(folder)!r}: {LAYOUT}")
    return np.concatenate(paths), np.concatenate(targets)


def _class_images(folder, name, others, skip):
    """File names of the images of one class, sorted, bytes (N,).

    others: a list to which the paths of its other files are added. InputError if an image lies in a
    subfolder or, unless `skip`, is not a file (a broken link, say).
    """
    path, images = os.path.join(folder, name), []
    with _listing(path), os.scandir(path) as entries:
        for entry in sorted(entries, key=operator.attrgetter("name")):
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                _check_subfolder(path, entry.path)
            elif not _is_image(entry.name):
                others.append(os.fsdecode(entry.path))
            elif entry.is_file() or skip:
                images.append(entry.name)
            else:
                raise InputError(
                    f"{os.fsdecode(entry.path)!r} is not a file, or is a broken link; repair or "
                    "remove it, or give -skipCorrupt true"
                )
    return np.array(images, "S")


def _check_subfolder(folder, subfolder):
    """InputError for an image at any depth below a subfolder; links in it are not followed."""
    real, below = (os.path.join(os.path.realpath(path), b"") for path in (folder, subfolder))
    if real.startswith(below):
        return  # a link that leads back up is not a subfolder

    def stop(error):  # os.walk would leave out what it cannot list
        raise error

    for place, folders, files in os.walk(subfolder, onerror=stop):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in sorted(files):
            if _is_image(name) and not is_hidden(name):
                raise _misplaced(os.path.join(place, name))


def _misplaced(path):
    return InputError(f"{os.fsdecode(path)!r} is not directly inside a class folder: {LAYOUT}")
