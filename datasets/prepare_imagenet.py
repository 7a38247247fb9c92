"""Prepares ImageNet: python -m datasets.prepare_imagenet ARCHIVES [DATA].

The official archives become the folders that main.py reads. Takes the place of the shell lines in
fb.resnet.torch's INSTALL.md.
"""

import os
import sys

from runtime import command
from runtime.terminal import Terminal, complain

HELP = """Usage: python -m datasets.prepare_imagenet ARCHIVES [DATA]

ARCHIVES  the folder with ILSVRC2012_img_train.tar, or with ILSVRC2012_img_val.tar and
          ILSVRC2012_devkit_t12.tar.gz, or with all three
DATA      the folder for train/<class>/<image> and val/<class>/<image> (default: imagenet)

The archives are checked (MD5) and stay as they are. After a stop the same command goes on."""


def main(argv=None):
    """Prepare what the command line says; an error is an InputError."""
    words = sys.argv[1:] if argv is None else list(argv)
    if any(word in ("-h", "-help", "--help") for word in words):
        print(HELP)
        return
    known = len(words) in (1, 2) and not any(word.startswith("-") for word in words)
    if not known or not os.path.isdir(words[0]):
        found = " ".join(words) or "nothing"
        fault = f"give ARCHIVES, a folder, and DATA or nothing, not: {found}"
        complain(f"prepare_imagenet.py: {f'there is no folder {words[0]}' if known else fault}")
        sys.exit(2)
    archives, target = words if len(words) == 2 else (words[0], "imagenet")
    # after the command line: an error or the help need not wait for torch
    from datasets import imagenet_archives

    with Terminal():
        imagenet_archives.prepare(archives, target)


if __name__ == "__main__":
    command.run(main)
