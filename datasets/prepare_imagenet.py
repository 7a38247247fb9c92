"""Prepares ImageNet: python -m datasets.prepare_imagenet ARCHIVES [DATA].

The official archives become the folders that main.py reads. Takes the place of the shell lines in
fb.resnet.torch's INSTALL.md and of its valprep.sh. torchvision checks and unpacks the archives. A
split is unpacked in a temporary folder and renamed when it is whole: it is there with all images or
not at all.
"""

import os
import re
import shutil
import sys
import tarfile
import tempfile

# for a start by its path, and for python -P and -I
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from runtime import command, options
from runtime.errors import InputError, cause
from runtime.terminal import say

HEAD = """Usage: python -m datasets.prepare_imagenet ARCHIVES [DATA]

ARCHIVES  the folder with ILSVRC2012_img_train.tar, or with ILSVRC2012_img_val.tar and
          ILSVRC2012_devkit_t12.tar.gz, or with all three
DATA      the folder for train/<class>/<image> and val/<class>/<image> (default: imagenet)

The archives are checked (MD5) and stay as they are. A split that is in DATA is left alone."""
TEMPORARY = re.compile(r"\.(train|val)\..*\.tmp")


def main(argv=None):
    """Prepare what the command line says; an error is an InputError."""
    words = []
    argv = sys.argv[1:] if argv is None else list(argv)
    with options.parsed(argv, "prepare_imagenet.py", HEAD, (), words):
        if len(words) not in (1, 2):
            raise InputError(
                f"give the folder ARCHIVES, and DATA if you like, not {len(words)} words"
            )
        if not os.path.isdir(words[0]):
            raise InputError(f"there is no folder {words[0]}")
    prepare(words[0], words[1] if len(words) == 2 else "imagenet")


def prepare(archives, target):
    """Unpack the archives in a folder that are there: of train, of val, or of both.

    The validation images need the development kit as well, which has their classes. InputError if
    an archive is missing, or is not the published one.
    """
    # not at the top: an error in the command line need not wait, or have the packages
    from torchvision.datasets import imagenet

    from storage import lock

    paths = {n: os.path.abspath(f"{archives}/{f}") for n, (f, _) in imagenet.ARCHIVE_META.items()}
    splits = [split for split in ("train", "val") if os.path.isfile(paths[split])]
    if not splits:
        names = " or ".join(os.path.basename(paths[split]) for split in ("train", "val"))
        raise InputError(f"{archives} has no {names}")
    if "val" in splits and not os.path.isfile(paths["devkit"]):
        raise InputError(f"{paths['devkit']} is missing: it has the classes of the val images")
    if not hasattr(tarfile, "data_filter"):
        raise InputError("unpacking safely needs Python 3.10.12, 3.11.4 or newer")
    # no member of an archive may be written outside (Python's default from 3.14 on)
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        os.makedirs(target, exist_ok=True)
        with lock.held(target, advice="name another folder"):
            for name in filter(TEMPORARY.fullmatch, os.listdir(target)):
                shutil.rmtree(os.path.join(target, name))  # of a run that was killed
            for split in splits:
                _unpack(split, paths, target)
    except ModuleNotFoundError as error:  # scipy, which scikit-learn brings
        raise InputError(
            f"{paths['devkit']} needs the package {error.name}: pip install {error.name}"
        ) from None
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"cannot unpack to {target}: {cause(error)}") from None


def _unpack(split, paths, target):
    from torchvision.datasets import imagenet

    folder, archive = os.path.join(target, split), paths[split]
    if os.path.isdir(folder):
        say(f"=> {folder} exists already and stays as it is")
        return
    free, needed = shutil.disk_usage(target).free, os.path.getsize(archive)
    if needed > free:
        raise InputError(
            f"{target} needs {needed / 1e9:.1f} GB more, but {free / 1e9:.1f} GB are free"
        )
    say(f"=> Unpacking {os.path.basename(archive)} to {folder}")
    with tempfile.TemporaryDirectory(".tmp", f".{split}.", target) as temporary:
        try:
            if split == "train":
                imagenet.parse_train_archive(temporary, archive, split)
            else:
                imagenet.parse_devkit_archive(temporary, paths["devkit"])
                imagenet.parse_val_archive(temporary, archive, folder=split)
        except RuntimeError:  # its MD5 is another
            used = archive if split == "train" else f"{archive} or {paths['devkit']}"
            raise InputError(f"{used} is not the published archive: download it again") from None
        os.rename(os.path.join(temporary, split), folder)
    say(f" | {sum(len(files) for *_, files in os.walk(folder))} images in {folder}")


if __name__ == "__main__":
    command.run(main)
