"""A detector's training step and its test against torchvision's FasterRCNN of the same weights.

Both are Faster R-CNN on the map of the stage before the last, which is the head of each region:
ours as detect.py trains it with -shared true, torchvision's put together from its own parts
(FasterRCNN, FrozenBatchNorm2d, MultiScaleRoIAlign) with its backbone, in both memory layouts. Same
images, same boxes, same first stages frozen, in turn in one process.
"""

import argparse
import os
from functools import partial

import project  # noqa: F401  before all else: sets the path, names a missing package

# isort: split

import timing
import torch
import torchvision
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from detection import files
from detection.trainer import optimizer
from models.resnet import resnet
from models.resnext import resnext
from runtime import memory

NETS = {
    "resnet18": lambda: resnet(18),
    "resnet50": lambda: resnet(50),
    "resnext50_32x4d": lambda: resnext(50, 32, 4),
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPEC = {"scale": 256, "crop": 224, "largest": 1, "mean": MEAN, "std": STD}
CLASSES, FROZEN = 80, 2


def main():
    args = options()
    device = torch.device(args.device)
    torch.backends.cudnn.allow_tf32 = False  # -precision single, for all
    if device.type == "cpu":
        memory.keep_freed()
    print(timing.machine("torchvision"), f"load {os.getloadavg()[0]:.1f}", sep=", ")
    ours = build(args)
    peers = {"ours": ours.to(device, memory_format=torch.channels_last)}
    for layout in (torch.contiguous_format, torch.channels_last):
        name = f"torchvision, {'NCHW' if layout == torch.contiguous_format else 'channels_last'}"
        peers[name] = theirs(ours, args).to(device, memory_format=layout)
    images, targets = batch(args, device)
    wait = torch.cuda.synchronize if device.type == "cuda" else None
    title = f"{args.net}, {args.batch} images of {args.side} x {args.side * 4 // 3}"
    for what, make in args.parts.items():
        values, ways = {}, {}
        for name, model in peers.items():
            way = make(model, images, targets, name == "ours")
            ways[name] = partial(first, values, name, way)
        times = timing.compare(ways, args.repetitions, wait)
        far = max(abs(value / values["ours"] - 1) for value in values.values())
        print(f"\n{title}, {what} (the first results differ by {far:.0e})\n")
        about = {"setting": f"{title}, {what}", "device": device}
        about["layout"] = lambda way: "NCHW" if "NCHW" in way else "channels_last"
        timing.rate_table(times, "ours", args.batch, "images", **about)


def first(values, name, way):
    """Call a way, and keep its first result."""
    values.setdefault(name, way())


def options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--net", choices=NETS, default="resnext50_32x4d")
    parser.add_argument("--side", type=int, default=600, help="shorter side of the images")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--regions", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", choices=("training", "test"), help="one of the two (both)")
    args = parser.parse_args()
    parts = {"training step": step, "test": test}
    args.parts = {name: way for name, way in parts.items() if name.startswith(args.only or "")}
    return args


def build(args):
    """Our detector; its last layers are larger than at the start, so that it finds boxes."""
    torch.manual_seed(0)
    net = NETS[args.net]()
    net.input_spec = SPEC
    config = {"shared": True, "anchors": [64, 128, 256, 512], "regions": args.regions, "pool": 14}
    config |= {"proposals": [12000, 2000, 6000, 300], "scale": args.side, "largest": 2 * args.side}
    model = files.from_classifier(net, config, [str(i) for i in range(CLASSES)])
    model.backbone.freeze_first(FROZEN)
    return model


class Body(nn.Module):
    """torchvision's net up to layer3."""

    def __init__(self, net, channels):
        super().__init__()
        self.out_channels = channels
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"):
            self.add_module(name, getattr(net, name))

    def forward(self, x):
        for module in self.children():
            x = module(x)
        return x


class Head(nn.Module):
    """Its layer4 and the mean over the map."""

    def __init__(self, net):
        super().__init__()
        self.layer4 = net.layer4

    def forward(self, x):
        return self.layer4(x).mean((2, 3))


def theirs(ours, args):
    """torchvision's FasterRCNN with our weights."""
    net, config = torchvision.models.get_model(args.net, norm_layer=FrozenBatchNorm2d), ours.config
    before, after, test_before, test_after = config["proposals"]
    model = FasterRCNN(
        Body(net, ours.backbone.out_channels),
        min_size=config["scale"],
        max_size=config["largest"],
        rpn_anchor_generator=AnchorGenerator((tuple(config["anchors"]),), ((0.5, 1.0, 2.0),)),
        rpn_pre_nms_top_n_train=before,
        rpn_post_nms_top_n_train=after,
        rpn_pre_nms_top_n_test=test_before,
        rpn_post_nms_top_n_test=test_after,
        box_roi_pool=MultiScaleRoIAlign(["0"], config["pool"], 2),
        box_head=Head(net),
        box_predictor=FastRCNNPredictor(ours.roi_heads.box_head.out_channels, CLASSES + 1),
        box_batch_size_per_image=config["regions"],
    )
    model.load_state_dict(ours.state_dict())
    for part in (model.backbone.conv1, model.backbone.layer1):
        part.requires_grad_(False)
    return model


def batch(args, device):
    """Images (3, H, W) in 0..255 and their targets."""
    torch.manual_seed(1)
    height, width = args.side, args.side * 4 // 3
    images = [torch.rand(3, height, width, device=device) * 255 for _ in range(args.batch)]
    targets = []
    for _ in range(args.batch):
        corner = torch.rand(7, 2, device=device) * args.side / 2
        boxes = torch.cat([corner, corner + 30 + torch.rand(7, 2, device=device) * 250], 1)
        labels = torch.randint(1, CLASSES + 1, (7,), device=device)
        targets.append({"boxes": boxes, "labels": labels})
    return images, targets


def step(model, images, targets, is_ours):
    """A function that takes a training step and returns the loss."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if is_ours:
        sgd = optimizer(named, twice=False, momentum=0.9, weight_decay=1e-4)
        for group in sgd.param_groups:
            group["lr"] = 1e-5
    else:  # as torchvision's script references/detection/train.py
        sgd = torch.optim.SGD(named.values(), lr=1e-5, momentum=0.9, weight_decay=1e-4)

    def take():
        model.train()
        torch.manual_seed(2)
        if is_ours:
            loss = sum(model.losses(images, targets, "shared").values())
        else:
            loss = sum(model([image / 255 for image in images], targets).values())
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        return loss.item()

    return take


def test(model, images, _, is_ours):
    """A function that finds boxes one image at a time, and returns how many, and one more."""

    @torch.inference_mode()
    def find():
        model.eval()
        run = model.detections if is_ours else model
        found = [run([image if is_ours else image / 255]) for image in images]
        return 1 + sum(len(each["boxes"]) for (each,) in found)

    return find


if __name__ == "__main__":
    main()
