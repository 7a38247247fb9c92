"""One-time preparation of CIFAR-100. Port of datasets/cifar100-gen.lua: constants only."""

from datasets import cifar10_gen
from datasets.cifar10_gen import Source, Version

SOURCE = Source(
    name="CIFAR-100",
    torchvision="CIFAR100",
    classes=100,
    label_bytes=2,  # coarse, fine
    label_key="fine_labels",
    binary=Version(
        "cifar-100-binary",
        "cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        ("train.bin",),
        ("test.bin",),
    ),
    python=Version(
        "cifar-100-python",
        "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        ("train",),
        ("test",),
    ),
)
is_valid = cifar10_gen.is_valid


def signature(opt):
    """See cifar10_gen."""
    return cifar10_gen.signature(opt, SOURCE)


def exec(opt, cache_file):
    """See cifar10_gen."""
    return cifar10_gen.exec(opt, cache_file, SOURCE)
