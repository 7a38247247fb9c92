"""What the tests share: one torch thread (nets here are small), and data made on the spot.

The suite is about the CPU, where results are equal to the bit, and sees no GPU. `pytest --cuda`
runs the tests of a GPU, and only these.
"""

import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)
if hasattr(signal, "SIGHUP"):  # nohup ignores it, also for the processes that a test signals
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser):
    parser.addoption("--cuda", action="store_true", help="run the tests of a GPU, and only these")


def pytest_configure(config):
    if not config.option.cuda:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests' processes inherit it
        return
    config.option.markexpr = "cuda"
    if not torch.cuda.is_available():
        raise pytest.UsageError("--cuda: PyTorch finds no CUDA device")


@pytest.fixture(scope="session")
def cifar(tmp_path_factory):
    """A folder with CIFAR-10 in the official binary layout: 35 and 21 random images."""
    folder = tmp_path_factory.mktemp("data") / "cifar-10-batches-bin"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, count in [(f"data_batch_{i}.bin", 7) for i in range(1, 6)] + [("test_batch.bin", 21)]:
        records = random.integers(0, 256, (count, 3073), dtype=np.uint8)
        records[:, 0] %= 10  # the label
        (folder / name).write_bytes(records.tobytes())
    return str(folder.parent)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """train/ and val/ with two classes of plain and striped pictures, 6 and 4 of each."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(1)
    for split, count in (("train", 6), ("val", 4)):
        for name, step in (("plain", 1000), ("striped", 8)):
            os.makedirs(folder / split / name)
            for i in range(count):
                pixels = random.integers(100, 156, (72 + i, 90, 3), dtype=np.uint8)
                pixels[:, ::step] = 255
                Image.fromarray(pixels).save(folder / split / name / f"{i}.jpg")
    return str(folder)
