"""Test support: a small detector, torchvision's own of the same weights, data in COCO's form."""

import json

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

import models
from detection import files
from formats import model_files
from models.resnet import resnet

SPEC = {"scale": 40, "crop": 32, "largest": 255, "mean": (110, 120, 130), "std": (60, 62, 64)}
SETTINGS = {"anchors": [16, 32, 64], "regions": 24, "scale": 96, "largest": 160, "pool": 14}
SETTINGS["proposals"] = [400, 100, 200, 50]
NAMES = ["cat", "dog", "fox", "owl"]


def classifier(*arguments, seed=0):
    """A net whose batch norms hold other numbers than the first ones."""
    torch.manual_seed(seed)
    net = resnet(*arguments)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor, 0.1, 0.2)
            nn.init.uniform_(module.weight, 0.3, 0.9)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    net.classes, net.input_spec = ["a", "b"], SPEC
    return net


def detector(shared=True, net=None, **settings):
    net = net or classifier(18, 2)
    return files.from_classifier(net, {**SETTINGS, "shared": shared, **settings}, NAMES)


class Body(nn.Module):
    """torchvision's ResNet-18 up to layer3."""

    out_channels = 256

    def __init__(self, net):
        super().__init__()
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


def torchvisions(ours):
    """torchvision's FasterRCNN of the same shape and weights as our shared ResNet-18, float64."""
    net, config = torchvision.models.resnet18(norm_layer=FrozenBatchNorm2d), ours.config
    before, after, test_before, test_after = config["proposals"]
    theirs = FasterRCNN(
        Body(net),
        min_size=config["scale"],
        max_size=config["largest"],
        image_mean=[value / 255 for value in SPEC["mean"]],
        image_std=[value / 255 for value in SPEC["std"]],
        rpn_anchor_generator=AnchorGenerator((tuple(config["anchors"]),), ((0.5, 1.0, 2.0),)),
        rpn_pre_nms_top_n_train=before,
        rpn_post_nms_top_n_train=after,
        rpn_pre_nms_top_n_test=test_before,
        rpn_post_nms_top_n_test=test_after,
        box_roi_pool=MultiScaleRoIAlign(["0"], config["pool"], 2),
        box_head=Head(net),
        box_predictor=FastRCNNPredictor(512, config["classes"] + 1),
        box_batch_size_per_image=config["regions"],
    ).double()
    theirs.load_state_dict(ours.state_dict())
    return theirs


def images(*sizes, seed=1):
    """Images (3, H, W) in 0..255, float64, and targets with boxes, one image without any."""
    random = np.random.default_rng(seed)
    found, targets = [], []
    for place, (height, width) in enumerate(sizes):
        found.append(torch.from_numpy(random.uniform(0, 255, (3, height, width))))
        count = 0 if place == 2 else 3
        corner = random.uniform(0, 0.5, (count, 2)) * (width, height)
        size = random.uniform(0.2, 0.45, (count, 2)) * (width, height)
        boxes = torch.from_numpy(np.concatenate([corner, corner + size], 1))
        labels = torch.from_numpy(random.integers(1, 5, count))
        targets.append({"boxes": boxes, "labels": labels})
    return found, targets


def write_coco(folder, split, count, seed=0, size=(48, 40)):
    """Bright squares and tall boxes on noise, as COCO's files with category ids 3 and 90."""
    random = np.random.default_rng(seed)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / split).mkdir()
    images, annotations = [], []
    for id in range(10, 10 + count):
        pixels = random.integers(0, 80, (size[1], size[0], 3), dtype=np.uint8)
        for k in range(2):
            kind = int(random.integers(2))
            width, height = (12, 12) if kind else (8, 18)
            x, y = int(random.integers(20)) + 20 * k * (1 - kind), int(random.integers(20))
            pixels[y : y + height, x : x + width] = 250 if kind else (250, 40, 40)
            box = [x, y, width, height]
            about = {"id": len(annotations) + 1, "image_id": id, "category_id": 3 if kind else 90}
            annotations.append({**about, "bbox": box, "area": width * height, "iscrowd": 0})
        Image.fromarray(pixels).save(folder / split / f"{id}.png")
        images.append({"id": id, "file_name": f"{id}.png", "width": size[0], "height": size[1]})
    categories = [{"id": 90, "name": "tall"}, {"id": 3, "name": "square"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content))
    return content


def write_classifier(path, seed=0):
    """A small net for small images as a model file."""
    net = classifier(8, 2, "cifar", "A", seed=seed)
    model_files.write(str(path), models.pack(net))
