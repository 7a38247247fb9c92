"""One-time preparation of CIFAR-100. Port of datasets/cifar100-gen.lua: constants only."""

import functools

from datasets import cifar10_gen
from datasets.cifar10_gen import Source, Version

VERSIONS = [
    Version("cifar-100-binary", "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
    Version("cifar-100-python", "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
]
# two label bytes: the coarse label, then the fine one
SOURCE = Source("CIFAR-100", 100, 2, "fine_labels", ["train"], ["test"], VERSIONS)
signature = functools.partial(cifar10_gen.signature, source=SOURCE)
exec = functools.partial(cifar10_gen.exec, source=SOURCE)
