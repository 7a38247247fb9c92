"""ImageNet's official archives, unpacked to train/<wnid>/ and val/<wnid>/.

Takes the place of the shell lines in fb.resnet.torch's INSTALL.md and of its valprep.sh. Differs
from torchvision's ImageNet: a run that was killed goes on where it was, images that are there are
compared with the archive, nothing is removed or overwritten, and the validation images need not be
unpacked to one folder first.

A class folder is renamed from a hidden temporary one: it is there with all images or not at all.
"""

import contextlib
import json
import os
import re
import shutil
import tarfile
import tempfile
from typing import NamedTuple

from datasets import download
from runtime.errors import InputError
from runtime.terminal import say, show
from storage import atomic, lock

CLASSES = 1000
IMAGES = {"train": 1_281_167, "val": 50_000}
CHECKED = ".archives.json"  # in the target: archives whose MD5 was right, so as to check them once
LOCK_WAIT = 2  # seconds
_TEMPORARY = re.compile(r"\.n\d{8}\.tmp")


class Archive(NamedTuple):
    """An official archive: its path, and its published MD5 (torchvision has the table)."""

    path: str
    md5: str


def prepare(archives, target):
    """Unpack the archives in a folder that are there: of train, of val, or of both.

    The validation images need the development kit as well, which has their classes. InputError if
    an archive is damaged, or if the target holds images that are not the archive's.
    """
    known = _known(archives)
    splits = [split for split in IMAGES if os.path.isfile(known[split].path)]
    if not splits:
        names = " or ".join(os.path.basename(known[split].path) for split in IMAGES)
        raise InputError(f"{archives} holds no {names}")
    needed = splits + ["devkit"] * ("val" in splits)
    if not os.path.isfile(known[needed[-1]].path):
        raise InputError(f"{known['devkit'].path} is missing: it has the classes of val's images")
    try:
        os.makedirs(target, exist_ok=True)
        with lock.held(target, LOCK_WAIT, "name another folder"):
            for name in needed:
                _check(known[name], target)
            for split in splits:
                _unpack_split(split, known, os.path.join(target, split))
    except tarfile.TarError as error:
        raise InputError(f"an archive in {archives} is damaged: {error}") from None
    except OSError as error:
        raise InputError(
            f"cannot unpack to {target}: {error}; the same command goes on from there"
        ) from None


def _known(archives):
    from torchvision.datasets import imagenet  # takes a second: not at the top

    return {
        name: Archive(os.path.join(archives, file), md5)
        for name, (file, md5) in imagenet.ARCHIVE_META.items()
    }


def _check(archive, target):
    """Raise InputError unless the archive has its MD5, or had it when it was checked before."""
    name, stat = os.path.basename(archive.path), os.stat(archive.path)
    identity = [os.path.abspath(archive.path), stat.st_size, stat.st_mtime_ns, archive.md5]
    record = os.path.join(target, CHECKED)
    checked = {}
    with contextlib.suppress(FileNotFoundError, ValueError), open(record) as file:
        checked = json.load(file)
    if checked.get(name) == identity:
        return
    say(f"=> Checking {name}")

    def progress(done):
        show(f" {name}: {100 * done // max(stat.st_size, 1)} % checked")

    found = download.checksum(archive.path, progress)
    show("")
    if found != archive.md5:
        raise InputError(
            f"{archive.path} is not the published archive: its MD5 is {found}, should be"
            f" {archive.md5}; get it again"
        )
    with atomic.replacing(record) as file:
        file.write(json.dumps({**checked, name: identity}).encode())


def _unpack_split(split, known, folder):
    """Unpack what is missing of a split, class by class, and count."""
    os.makedirs(folder, exist_ok=True)
    for name in filter(_TEMPORARY.fullmatch, os.listdir(folder)):
        shutil.rmtree(os.path.join(folder, name))
    say(f"=> Unpacking {os.path.basename(known[split].path)} to {folder}")
    with tarfile.open(known[split].path, "r:") as tar:
        if split == "train":
            classes = _train_classes(tar)
        else:
            classes = _val_classes(tar, _val_wnids(known["devkit"].path))
        names = {name for name in os.listdir(folder) if not name.startswith(".")}
        for stray in sorted(names - set(classes)):
            raise InputError(f"{os.path.join(folder, stray)} is not ImageNet's: move it away")
        sizes = (sum(m.size for m in classes[name]) for name in set(classes) - names)
        _check_space(folder, sum(sizes))
        count = 0
        for done, (wnid, members) in enumerate(sorted(classes.items())):
            show(f" {split}: {done} of {len(classes)} classes, {count} images")
            count += _unpack_class(tar, members, os.path.join(folder, wnid), split == "train")
    show("")
    if (len(classes), count) != (CLASSES, IMAGES[split]):
        expected = f"{IMAGES[split]} of {CLASSES}"
        raise InputError(f"{folder} has {count} images of {len(classes)} classes, not {expected}")
    say(f" | {count} images of {len(classes)} classes in {folder}")


def _train_classes(tar):
    """{wnid: [the member that is the archive of its images]}."""
    classes = {}
    for member in tar:
        found = re.fullmatch(r"(?:\./)?(n\d{8})\.tar", member.name)
        if not found or not member.isfile():
            raise InputError(f"{tar.name} is damaged: it holds {member.name!r}, no class's archive")
        classes[found[1]] = [member]
    return classes


def _val_classes(tar, wnids):
    """{wnid: [the members that are its images]}; `wnids` are the classes of the sorted images."""
    images = sorted((m for m in tar if m.isfile()), key=lambda member: member.name)
    if len(images) != len(wnids):
        raise InputError(f"{tar.name} has {len(images)} images, but there are {len(wnids)} labels")
    classes = {}
    for image, wnid in zip(images, wnids):
        classes.setdefault(wnid, []).append(image)
    return classes


def _val_wnids(devkit):
    """The class of each validation image, in the order of their names."""
    from torchvision.datasets import imagenet

    with tempfile.TemporaryDirectory() as folder:  # for the file meta.bin that torchvision writes
        try:
            imagenet.parse_devkit_archive(folder, os.path.abspath(devkit))
        except ModuleNotFoundError as error:  # scipy, which scikit-learn brings
            raise InputError(
                f"{devkit} is read by {error.name}: pip install {error.name}"
            ) from None
        return imagenet.load_meta_file(folder)[1]


def _check_space(folder, needed):
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{folder} needs {needed / 1e9:.1f} GB more, but {free / 1e9:.1f} GB are free"
        )


def _unpack_class(tar, members, folder, nested):
    """Unpack the images of a class, or compare them if the folder is there; returns their number.

    nested: the only member is an archive of the images.
    """
    if nested:
        with tarfile.open(fileobj=tar.extractfile(members[0]), mode="r:") as inner:
            return _unpack_class(inner, inner.getmembers(), folder, False)
    sizes = {os.path.basename(member.name): member.size for member in members}
    if len(sizes) < len(members) or not all(name.endswith(".JPEG") for name in sizes):
        raise InputError(f"the archive of {folder} is damaged: it holds more than images")
    if os.path.isdir(folder):
        with os.scandir(folder) as entries:
            if {entry.name: entry.stat().st_size for entry in entries} != sizes:
                raise InputError(f"{folder} holds other files than the archive: move it away")
        return len(sizes)
    parent, wnid = os.path.split(folder)
    temporary = os.path.join(parent, f".{wnid}.tmp")
    os.mkdir(temporary)
    for member in members:
        path = os.path.join(temporary, os.path.basename(member.name))
        with tar.extractfile(member) as image, open(path, "wb") as file:
            shutil.copyfileobj(image, file, 1 << 20)
    os.rename(temporary, folder)
    return len(sizes)
