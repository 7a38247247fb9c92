"""One-time preparation of ImageNet, or of any folder laid out like it: the list of its images.

Port of datasets/imagenet-gen.lua. Differs from the Lua: the list is sorted, where the Lua had the
file system's order; hidden files and folders are left out; an image in the wrong place is an error
that names the image; names may hold any byte; .pgm, .tif, .tiff, .webp, .avif and .jp2 are images
too; -testOnly needs no training images.

torchvision's make_dataset takes 1.5 times as long, and its list of tuples 3 times the memory.
"""

import contextlib
import hashlib
import operator
import os
from collections import Counter

import numpy as np

from datasets import cache, image_lists
from datasets.class_names import normalized
from runtime import regular_files
from runtime.errors import InputError
from runtime.terminal import note, say, show

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

    The classes are those of train, by its folders or list; of val for -testOnly without train.
    """
    path, folder = next(iter(_sources(opt).values()))
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
    for split, (path, folder) in _sources(opt).items():
        if path:
            content = hashlib.sha256(regular_files.read_bytes(path, image_lists.LARGEST))
            digest.update(f"{split} {content.hexdigest()}\0".encode())
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
    (N,) from 0; `classes`: bytes (C,).
    """
    stamp = signature(opt)  # before the search, so that a change meanwhile makes the list stale
    say("=> Generating list of images")
    names = classes(opt)
    numbers = {name: number for number, name in enumerate(names)}
    info = {"signature": np.array(stamp), "classes": np.array(list(map(os.fsencode, names)))}
    for split, kind in (("val", "validation"), ("train", "training")):
        paths, targets = np.zeros(0, "S1"), np.zeros(0, np.int64)
        if split in _sources(opt):
            say(f" | finding all {kind} images")
            paths, targets = _images(opt, split, numbers)
            if not (opt.testOnly and split == "train"):
                empty = np.setdiff1d(np.arange(len(names)), targets)
                _note(f"classes without a {kind} image", [names[n] for n in empty])
        info |= {f"{split}_paths": paths, f"{split}_targets": targets}
    _note_repeated(opt, info)
    say(f" | saving list of images to {cache_file}")
    return cache.save(cache_file, info)


def is_valid(info, opt):
    """Whether a cache has the images that this run needs: -testOnly needs none of train."""
    return len(info["train_paths"]) > 0 or opt.testOnly


def _note_repeated(opt, info):
    """Note which images a list has more than once, and which both lists have."""
    paths = {split: info[f"{split}_paths"] for split in ("train", "val")}
    lists = {split: path for split in paths if (path := image_lists.find(opt, split))}
    for split, path in lists.items():
        found, counts = np.unique(paths[split], return_counts=True)
        _note(f"images that {path} has more than once", found[counts > 1])
    if len(lists) == 2:
        both = " and ".join(lists.values())
        _note(f"images that {both} both have", np.intersect1d(*paths.values()))


def _note(what, names, then=""):
    """Note what these names are, if there are any: how many, and the first three."""
    if len(names):
        few = ", ".join(repr(os.fsdecode(name)) for name in names[:3])
        note(f"=> {what}: {len(names)} ({few}{', ...' * (len(names) > 3)}){then}")


def _sources(opt):
    """The splits to list: {split: (its list or None, its folder)}.

    Where there is no val, -valShare or -fold takes it from train.
    """
    found = {s: (image_lists.find(opt, s), folder_of(opt, s)) for s in ("train", "val")}
    (train, folder), (val, val_folder) = found.values()
    if not (val or os.path.isdir(val_folder)):
        del found["val"]
    elif opt.testOnly and not (train or (os.path.isdir(folder) and class_folders(folder))):
        del found["train"]
    return found


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
    """The lists that are given. Each choice of lists has a cache of its own."""
    return list(filter(None, (image_lists.find(opt, split) for split in ("train", "val"))))


def class_folders(folder):
    """The names of the folders in a folder, sorted; without hidden ones."""
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def _entries(folder):
    """The os.DirEntry of everything that is not hidden, sorted by name."""
    with _listing(folder), os.scandir(folder) as entries:
        shown = [entry for entry in entries if not is_hidden(entry.name)]
    return sorted(shown, key=operator.attrgetter("name"))


@contextlib.contextmanager
def _listing(folder):
    """Turn an OSError into the sentence that this folder cannot be listed."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot list {os.fsdecode(folder)!r}: {error.strerror}") from None


def is_hidden(name):
    """Whether a file or folder is not the user's own: hidden, or added by a system."""
    name = os.fsencode(name)
    return name[:1] == b"." or name in _SYSTEM


def _is_image(name):
    return name.lower().endswith(_ENDINGS)


def _images(opt, split, numbers):
    """Paths and targets of a split, bytes (N,) and int64 (N,); sorted by path, or as listed."""
    if image_lists.find(opt, split):
        listed, numbers = image_lists.images(opt, split, list(numbers))
        return np.array(listed), np.array(numbers, np.int64)
    folder, others, count = folder_of(opt, split), [], 0
    paths, targets = [np.zeros(0, "S1")], [np.zeros(0, np.int64)]  # arrays, for millions of images
    entries = _entries(folder)
    for n, entry in enumerate(entries):
        show(f" {count} images in {n} of {len(entries)} folders")
        if not entry.is_dir():
            if _is_image(entry.name):
                raise _misplaced(entry.path)
            continue
        images = _class_images(entry, others, opt.skipCorrupt)
        number = numbers.get(normalized(entry.name))
        if images and number is None:
            raise InputError(
                f"class not found: {os.fsdecode(entry.path)!r} holds images, but train has no "
                f"folder with that name; {LAYOUT}"
            )
        if images:
            paths.append(np.array(images, "S"))
            targets.append(np.full(len(images), number, np.int64))
            count += len(images)
    show("")
    endings = " ".join(EXTENSIONS)
    advice = "; export HEIC and others as JPEG"
    _note(f"files left out, because their names do not end in {endings}", others, advice)
    if not count and not (opt.testOnly and split == "train"):
        raise InputError(f"no images ({endings}) in {os.fsdecode(folder)!r}: {LAYOUT}")
    return np.concatenate(paths), np.concatenate(targets)


def _class_images(folder, others, skip):
    """The paths "class/image" of the images of one class, sorted. folder: its os.DirEntry.

    others: a list to which the paths of its other files are added. InputError if an image lies in a
    subfolder or, unless `skip`, is not a file (a broken link, say).
    """
    images = []
    for entry in _entries(folder.path):
        is_image = _is_image(entry.name)
        if is_image and entry.is_file():  # first, because almost every entry is one
            images.append(folder.name + b"/" + entry.name)
        elif entry.is_dir(follow_symlinks=False):
            _check_subfolder(entry.path)
        elif not is_image:
            others.append(entry.path)
        elif skip:
            images.append(folder.name + b"/" + entry.name)
        else:
            raise InputError(
                f"{os.fsdecode(entry.path)!r} is not a file, or is a broken link; repair or "
                "remove it, or give -skipCorrupt true"
            )
    return images


def _check_subfolder(folder):
    """InputError for an image at any depth below a subfolder; links are not followed."""
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            _check_subfolder(entry.path)
        elif _is_image(entry.name):
            raise _misplaced(entry.path)


def _misplaced(path):
    return InputError(f"{os.fsdecode(path)!r} is not directly inside a class folder: {LAYOUT}")
