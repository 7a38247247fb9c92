"""Faster R-CNN with the last stage of a classifier as the head of each region (He et al. 2015).

The stages before the last see the whole image, and the RPN works on their maps. In the paper's
form, RPN and Fast R-CNN share nothing: each has its own copy of these stages.
"""

import math
from collections import OrderedDict

import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

import models
from datasets.image import decoding
from detection import parts
from models.blocks import Net
from runtime.errors import InputError

CAPS = ("maxBoxes", "leastScore", "nms")  # of what a test finds; a config may lack them
RPN_LOSSES = {"objectness": "loss_objectness", "proposal": "loss_rpn_box_reg"}  # torchvision's
RATIOS = (0.5, 1.0, 2.0)  # height to width of the anchors


class Trunk(nn.Sequential):
    """All stages of a classifier but the last: images (N, 3, H, W) to (N, C, H / s, W / s)."""

    def __init__(self, net):
        children = dict(net.named_children())
        before = list(children).index(net.stages[-1])
        super().__init__(OrderedDict(list(children.items())[:before]))
        stages = net.stages[:-1]
        self.parts = ["conv1", *stages]  # as -freeze counts them
        self.out_channels = getattr(net, stages[-1])[-1].outputs
        self.stride = (4 if net.maxpool is not None else 1) * 2 ** (len(stages) - 1)

    def freeze_first(self, count):
        """Hold the first `count` parts still: the first layers, then the stages."""
        most = len(self.parts)
        if count > most:
            parts = f"the first layers and {most - 1} stages before the last"
            raise InputError(f"-freeze {count}: give at most {most}, {parts}")
        for name in self.parts[:count]:
            getattr(self, name).requires_grad_(False)


class LastStage(nn.Sequential):
    """The last stage, as the head of each region: (R, C, 14, 14), say, to (R, channels)."""

    def __init__(self, net):
        children = list(net.named_children())
        names = [name for name, _ in children]
        first, end = names.index(net.stages[-1]), names.index("fc")
        super().__init__(OrderedDict([*children[first:end], ("flatten", nn.Flatten())]))
        self.out_channels = children[first][1][-1].outputs


class Transform(GeneralizedRCNNTransform):
    """torchvision's, but each side of a narrow image keeps at least one pixel."""

    def normalize(self, image):
        # on the device from the first image on, because each copy waits for a GPU
        self.image_mean, self.image_std = (
            torch.as_tensor(each, dtype=torch.float64, device=image.device)
            for each in (self.image_mean, self.image_std)
        )
        return super().normalize(image)

    def resize(self, image, target=None):
        sides = image.shape[-2:]
        scale = min(self.min_size[0] / min(sides), self.max_size / max(sides))
        self.fixed_size = tuple(max(1, math.floor(side * scale)) for side in reversed(sides))
        return super().resize(image, target)


class Detector(nn.Module):
    """A net that finds objects; `config` rebuilds it.

    config: {"net": "faster_rcnn", "backbone": the classifier's config, "classes": how many,
    "shared": one trunk and both losses at once, "anchors": sides in pixels, "pool": a region's side
    before the last stage, which halves it, "regions": per image in training, "proposals": how many
    before and after NMS in training, then in a test, "scale": the image's shorter side, "largest":
    its longer side at most}, and CAPS.
    """

    def __init__(self, config):
        super().__init__()
        self.config, self.classes, self.input_spec = config, None, None
        shared = config["shared"]
        net = _classifier(config)
        self.backbone = parts.freeze_norms(Trunk(net))
        if not shared:
            self.rpn_backbone = parts.freeze_norms(Trunk(_classifier(config)))
        self.rpn = _proposal_net(config, self.backbone.out_channels)
        head = parts.freeze_norms(LastStage(net))
        self.roi_heads = parts.RegionHeads(
            parts.RegionPool(config["pool"], self.backbone.stride, align=shared),
            head,
            parts.predictor(head.out_channels, config["classes"]),
            **{"fg_iou_thresh": 0.5, "bg_iou_thresh": 0.5, "bbox_reg_weights": None},
            **{"batch_size_per_image": config["regions"], "positive_fraction": 0.25},
            score_thresh=config.get("leastScore", 0.05),
            nms_thresh=config.get("nms", 0.5 if shared else 0.3),
            detections_per_img=config.get("maxBoxes", 100),
        )
        self.roi_heads.box_coder = parts.BoxCoder((10.0, 10.0, 5.0, 5.0))
        if not shared:
            self.roi_heads.background, self.roi_heads.beta = 0.1, 1.0

    @property
    def rpn_trunk(self):
        """The trunk whose maps the RPN sees."""
        return getattr(self, "rpn_backbone", self.backbone)

    def show_images(self, spec):
        """Use the classifier's input spec, which says how bytes become its input."""
        self.input_spec = spec
        unit = 255 / spec["largest"]
        mean, std = ([unit * value for value in spec[name]] for name in ("mean", "std"))
        sides = self.config["scale"], self.config["largest"]
        self.transform = Transform(*sides, mean, std)

    def losses(self, images, targets, step):
        """{name of LOSSES: mean over the images} of a training step.

        images: floats (3, H, W) in 0..255. targets: "boxes" (n, 4), "labels" (n,), "crowd" (m, 4);
        best on the CPU, where scaling them waits for no GPU.
        step: "rpn", "fast" or "shared".
        """
        images, targets = self._transformed(images, targets)
        self.rpn.numbers, self.rpn.proposes = "training", step != "rpn"
        self.rpn.train(step != "fast")
        with torch.set_grad_enabled(step != "fast"):
            maps = self._maps(self.rpn_trunk, images)
            proposals, losses = self.rpn(images, maps, targets)
        found = {name: losses[theirs] for name, theirs in RPN_LOSSES.items() if losses}
        if step != "rpn":
            maps = maps if step == "shared" else self._maps(self.backbone, images)
            _, losses = self.roi_heads(maps, proposals, images.image_sizes, targets)
            found |= losses
        return found

    def reset_classes(self, names):
        """Begin to find other classes: all weights but those of the two last layers stay."""
        self.config = {**self.config, "classes": len(names)}
        self.roi_heads.box_predictor = parts.predictor(
            self.roi_heads.box_head.out_channels, len(names)
        )
        self.classes = list(names)

    @torch.inference_mode()
    def forward(self, image):
        """{"boxes", "scores", "labels", "names"} of what one image shows, in its pixels.

        image: a file (a photo is turned upright), an image of Pillow's, or a tensor (3, H, W) of
        bytes or of floats in 0..1. Of a list of these, a list.
        """
        if isinstance(image, list):
            return [*map(self.forward, image)]
        weight = next(self.parameters())
        if not isinstance(image, torch.Tensor):
            image = torch.from_numpy(decoding.load_image(image, upright_unless=decoding.ALWAYS))
        if image.dim() != 3 or len(image) != 3 or not image.numel():
            raise InputError(f"an image of shape {tuple(image.shape)}: (3, H, W) would be right")
        highest = 1 if image.is_floating_point() else 255
        if not (image.min() >= 0 and image.max() <= highest):
            raise InputError("a tensor of floats should lie in 0..1, one of bytes in 0..255")
        (found,) = self.detections([image.to(weight) * (255 / highest)])
        return {**found, "names": [self.classes[k - 1] for k in found["labels"].tolist()]}

    def detections(self, images, proposing=False):
        """{"boxes", "scores", "labels"} of each image, in its own pixels, on the CPU.

        images: floats (3, H, W) in 0..255. proposing: the "boxes" alone, of the RPN's proposals.
        """
        sizes = [tuple(image.shape[-2:]) for image in images]
        images, _ = self._transformed(images)
        self.rpn.numbers, self.rpn.proposes = "testing", True
        maps = self._maps(self.rpn_trunk, images)
        proposals, _ = self.rpn(images, maps)
        if proposing:
            found = [{"boxes": boxes.cpu()} for boxes in proposals]
        else:
            maps = maps if self.config["shared"] else self._maps(self.backbone, images)
            found, _ = self.roi_heads(maps, proposals, images.image_sizes)
        return self.transform.postprocess(found, images.image_sizes, sizes)

    def _transformed(self, images, targets=None):
        before = [tuple(image.shape[-2:]) for image in images]
        images, targets = self.transform(images, targets)
        for target, old, new in zip(targets or (), before, images.image_sizes):
            if "crowd" in target:  # torchvision's transform only knows "boxes"
                target["crowd"] = resize_boxes(target["crowd"], old, new)
            target |= {
                name: each.to(images.tensors.device, non_blocking=True)
                for name, each in target.items()
            }
        images.tensors = images.tensors.contiguous(memory_format=torch.channels_last)
        return images, targets

    @staticmethod
    def _maps(trunk, images):
        return {"0": parts.wide(trunk(images.tensors))}

    def of_step(self, step, held=0):
        """{name: parameter} that a step trains if -freeze is `held`."""
        names = {"rpn": ("rpn.", "rpn_backbone."), "fast": ("backbone.", "roi_heads.")}
        trunks, parts = ("backbone", "rpn_backbone"), self.backbone.parts[:held]
        still = tuple(f"{trunk}.{part}." for trunk in trunks for part in parts)
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if name.startswith(names.get(step, "")) and not name.startswith(still)
        }

    def trained(self, step):
        """{name: parameter} that a step trains."""
        return {name: p for name, p in self.of_step(step).items() if p.requires_grad}


def _classifier(config):
    net = models.from_config(config["backbone"])
    if not isinstance(net, Net) or len(net.stages) < 2:
        name, count = config["backbone"].get("net"), len(getattr(net, "stages", ())) or "no"
        raise InputError(f"the net {name!r} has {count} stages; a detector needs at least two")
    return net


def _proposal_net(config, channels):
    anchors = AnchorGenerator((tuple(config["anchors"]),), (RATIOS,))
    before, after = (dict(zip(("training", "testing"), config["proposals"][k::2])) for k in (0, 1))
    head = parts.ProposalHead(channels, anchors.num_anchors_per_location()[0])
    net = parts.ProposalNet(
        *(anchors, head),
        **{"fg_iou_thresh": 0.7, "bg_iou_thresh": 0.3, "batch_size_per_image": 256},
        **{"positive_fraction": 0.5, "nms_thresh": 0.7},
        **{"pre_nms_top_n": before, "post_nms_top_n": after},
    )
    net.box_coder = parts.BoxCoder((1.0, 1.0, 1.0, 1.0))
    if not config["shared"]:
        net.inside_only = True
        net.min_size = config["anchors"][0] / 4  # 16 pixels with anchors from 64: docs/detection.md
    return net
