"""How fast one core augments CIFAR-10's training images, beside torchvision's usual pipeline.

    taskset -c 0 python benchmarks/cifar_input.py [IMAGES]

One call is an epoch of IMAGES (default 10,000) random pictures of 32 x 32 in batches of 128: order,
draws, normalising, mirroring and cropping. The last line holds it against a step of ResNet-20.
"""

import sys

import project  # noqa: F401  before all else: sets the path, names a missing package

# isort: split

import numpy as np
import timing
import torch
from PIL import Image
from torch.utils import data
from torchvision import transforms as tv

import dataloader
import opts
from datasets import cifar10
from datasets.draws import Draws
from datasets.in_memory import crop_batch, flip_batch, normalize_batch
from models import resnet

MEAN = tuple(v / 255 for v in cifar10.mean)
STD = tuple(v / 255 for v in cifar10.std)
BATCH = 128


class Pictures(data.Dataset):
    """CIFAR as torchvision holds it: arrays, of each a Pillow image when it is asked for."""

    transform = tv.Compose(
        [
            tv.RandomCrop(32, 4),
            tv.RandomHorizontalFlip(),
            tv.ToTensor(),
            tv.Normalize(MEAN, STD),
        ]
    )

    def __init__(self, images, labels):
        self.images, self.labels = images.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist()

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]

    def __len__(self):
        return len(self.labels)


def tensors(dataset):
    """The same by tensor operations, as on a GPU."""
    uniforms = torch.rand(len(dataset.images), 3, dtype=torch.float64)

    def run():
        for i in range(0, len(dataset.images), BATCH):
            batch, draws = dataset.images[i : i + BATCH], uniforms[i : i + BATCH]
            batch = flip_batch(normalize_batch(batch, dataset.mean, dataset.std), draws[:, 0])
            crop_batch(batch, draws[:, 1], draws[:, 2], 4)

    return run


def drain(batches):
    """Go through all batches."""
    for _ in batches:
        pass


def check(loader):
    """End if a batch is not what the transforms of one image give."""
    dataset, chain = loader.dataset, loader.dataset.transform()
    order = dataloader.permutation(loader.seed, 1, dataset.size())
    input = next(iter(loader.run(1))).input
    for index, result in zip(order[:BATCH], input):
        plain = chain(dataset.get(index)[0], Draws(loader.seed, 1, int(index)))
        if not np.array_equal(result, plain):
            sys.exit("our fast input differs from the plain transforms")


def step():
    """A function that trains ResNet-20 on one batch."""
    net = resnet.resnet(20, 10, "cifar", "A").to(memory_format=torch.channels_last)
    input = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    target, loss = torch.randint(0, 10, (BATCH,)), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)

    def run():
        optimizer.zero_grad()
        loss(net(input), target).backward()
        optimizer.step()

    return run


def main():
    torch.set_num_threads(1)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10000
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    labels = random.integers(0, 10, count)
    opt = opts.parse(f"-dataset cifar10 -depth 20 -batchSize {BATCH} -manualSeed 1".split())
    dataset = cifar10.create({"train_images": images, "train_labels": labels}, opt, "train")
    loader = dataloader.DataLoader(
        dataset, torch.device("cpu"), training=True, batch_size=BATCH, seed=1
    )
    check(loader)
    pictures = data.DataLoader(Pictures(dataset.images, dataset.labels), BATCH, shuffle=True)
    ways = {
        "ours": lambda: drain(loader.run(1)),
        "torchvision, image by image": lambda: drain(pictures),
        "ours as tensor operations (as on a GPU)": tensors(dataset),
    }
    times = timing.compare(ways, 7)
    timing.rate_table(times, "ours", count, "images", setting=f"{count} images", layout="")
    train = timing.median(timing.compare({"step": step()}, 5), "step")
    share = timing.median(times, "ours") / count * BATCH / train
    print(f"a step of ResNet-20 takes {train * 1e3:.0f} ms, its batch {share:.2%} of that")
    print(timing.machine("torchvision", "pillow", "numba", "numpy"))


if __name__ == "__main__":
    main()
