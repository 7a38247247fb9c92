"""Prepares ImageNet: python prepare.py ARCHIVES [DATA].

The official archives become the folders that main.py reads. Takes the place of the shell lines in
fb.resnet.torch's INSTALL.md.
"""

import functools
import os
import sys

import opts
from runtime import command
from runtime.errors import InputError
from runtime.terminal import Terminal

HEAD = """Usage: prepare.py ARCHIVES [DATA] [options]

ARCHIVES  the folder with ILSVRC2012_img_train.tar, or with ILSVRC2012_img_val.tar and
          ILSVRC2012_devkit_t12.tar.gz, or with all three
DATA      the folder for train/<class>/<image> and val/<class>/<image> (default: imagenet)

The archives are checked (MD5) and stay as they are. After a stop the same command goes on.

Options:"""
OPTIONS = tuple(row for row in opts.OPTIONS if row[0] == "progress")


def main(argv=None):
    """Prepare what the command line says; an error is an InputError."""
    archives, target, progress = parse(sys.argv[1:] if argv is None else list(argv))
    # after the command line: an error or the help need not wait for torch
    from datasets import imagenet_archives

    with Terminal(progress):
        imagenet_archives.prepare(archives, target)


def parse(argv):
    """ARCHIVES, DATA and -progress. -help and wrong options exit."""
    words = []
    check = functools.partial(_checked, words)
    return opts.command_line(argv, "prepare.py", HEAD, OPTIONS, check, words)


def _checked(words, opt):
    if len(words) not in (1, 2):
        raise InputError("give the folder of the archives, prepare.py ARCHIVES [DATA] (see -help)")
    archives, target = words if len(words) == 2 else (words[0], "imagenet")
    if not os.path.isdir(archives):
        raise InputError(f"{archives} is not a folder")
    return archives, target, opt.progress


if __name__ == "__main__":
    command.run(main)
