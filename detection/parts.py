"""The parts of torchvision's Faster R-CNN, changed where py-faster-rcnn differs.

ProposalNet and RegionHeads are torchvision's, with attributes that turn on the paper's two steps.
ProposalHead and RegionHeads return at least float32. RegionPool can also do RoI pooling. Batch
norms are frozen and folded into the convolutions before them: this keeps function, gradient and the
names in the state dict, and needs one pass over the map in place of two. docs/detection.md lists
what still differs from py-faster-rcnn.

Each constant that is made on a GPU, each mask in an index and each `torch.where` of one waits for
the GPU. Where torchvision does this often, code of our own takes its place, with equal results.
"""

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import nn
from torchvision import ops
from torchvision.models.detection import _utils
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from models import fold

CROWD = 0.7  # a proposal is left out if more than this share of it lies in a crowd


def wide(x):
    """A map or output in at least float32, because 16 bits are too few for boxes of 1000 pixels."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class ProposalHead(RPNHead):
    """torchvision's, with outputs in at least float32. Only those of `at` have a gradient."""

    @torch.no_grad()
    def forward(self, x):
        logits, deltas = super().forward(x)
        return [wide(t) for t in logits], [wide(t) for t in deltas]

    def at(self, x, anchors):
        """The logits (n,) and deltas (n, 4) of some anchors of the maps x (N, C, H, W).

        anchors: their places in torchvision's order: image, row, column, anchor of that place.
        """
        count = self.cls_logits.out_channels
        places, own = anchors[:, None, None] // count, anchors % count
        places, column = places // x.shape[3], places % x.shape[3]
        image, row = places // x.shape[2], places % x.shape[2]
        three, every = torch.arange(3, device=x.device), torch.arange(len(own), device=x.device)
        rows = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)  # (N, H + 2, W + 2, C)
        patches = rows[image, row + three[:, None], column + three]  # (n, 3, 3, C)
        hidden = _as_product(self.conv[0][0], patches).relu()
        logits = _as_product(self.cls_logits, hidden)[every, own]
        deltas = _as_product(self.bbox_pred, hidden).view(-1, count, 4)[every, own]
        return wide(logits), wide(deltas)


def _as_product(conv, patches):
    """A convolution at one place of each patch, as a matrix product, which is faster."""
    weight = conv.weight.permute(0, 2, 3, 1).flatten(1)
    return F.linear(patches.flatten(1), weight, conv.bias)


class BoxCoder(_utils.BoxCoder):
    """torchvision's, with its constants on the device."""

    def _weights(self, like):
        self.weights = torch.as_tensor(self.weights, dtype=like.dtype, device=like.device)
        return self.weights

    def encode_single(self, reference_boxes, proposals):
        return _utils.encode_boxes(reference_boxes, proposals, self._weights(reference_boxes))

    def decode_single(self, rel_codes, boxes):
        boxes = boxes.to(rel_codes.dtype)[:, None]  # (N, 1, 4), and (N, classes, 4)
        codes = rel_codes.unflatten(1, (-1, 4)) / self._weights(rel_codes)
        sides = boxes[..., 2:] - boxes[..., :2]
        middle = codes[..., :2] * sides + (boxes[..., :2] + 0.5 * sides)
        half = 0.5 * (codes[..., 2:].clamp(max=self.bbox_xform_clip).exp() * sides)
        return torch.cat([middle - half, middle + half], 2).flatten(1)


def draw(sampler, labels):
    """The places of the positive and of the negative labels that torchvision's sampler draws."""
    chosen, most = [], int(sampler.batch_size_per_image * sampler.positive_fraction)
    for places in (torch.where(labels >= 1)[0], torch.where(labels == 0)[0]):
        order = torch.randperm(len(places), device=labels.device)
        chosen.append(places[order[:most]].sort().values)
        most = sampler.batch_size_per_image - len(chosen[0])
    return chosen


class ProposalNet(RegionProposalNetwork):
    """torchvision's RPN. proposes: whether to propose at all. numbers: "training" or "testing".

    inside_only: anchors that cross the border of the image are neither positive nor negative, nor
    the best of an object (py-faster-rcnn's anchor_target_layer).
    """

    inside_only, proposes, numbers = False, True, "testing"

    def forward(self, images, features, targets=None):
        self.image_sizes, (self.maps,) = images.image_sizes, features.values()
        try:
            return super().forward(images, features, targets)
        finally:
            self.maps = None  # with its graph

    def compute_loss(self, objectness, deltas, labels, regression):
        """torchvision's losses. The head runs again, at the sampled anchors only.

        At all other anchors the gradient is zero, and computing it takes a seventh of a step.
        """
        starts = accumulate(map(len, labels), initial=0)
        chosen = [
            [at + k for k in draw(self.fg_bg_sampler, own)] for at, own in zip(starts, labels)
        ]
        positive, negative = map(torch.cat, zip(*chosen))
        sampled = torch.cat([positive, negative])
        logits, deltas = self.head.at(self.maps, sampled)
        regression, labels = torch.cat(regression)[positive], torch.cat(labels)[sampled]
        box = F.smooth_l1_loss(deltas[: len(positive)], regression, beta=1 / 9, reduction="sum")
        return F.binary_cross_entropy_with_logits(logits, labels), box / len(sampled)

    def pre_nms_top_n(self):
        return self._pre_nms_top_n[self.numbers]

    def post_nms_top_n(self):
        return self._post_nms_top_n[self.numbers]

    def filter_proposals(self, proposals, objectness, image_shapes, num_anchors_per_level):
        if not self.proposes:
            return [], []
        (count,), found = num_anchors_per_level, []
        logits, best = objectness.reshape(-1, count).topk(min(count, self.pre_nms_top_n()))
        for boxes, scores, order, shape in zip(proposals, logits.sigmoid(), best, image_shapes):
            boxes = ops.clip_boxes_to_image(boxes[order], shape)
            large = ops.remove_small_boxes(boxes, self.min_size)
            boxes, scores = boxes[large], scores[large]
            found.append(boxes[ops.nms(boxes, scores, self.nms_thresh)[: self.post_nms_top_n()]])
        return found, []

    def assign_targets_to_anchors(self, anchors, targets):
        labels, boxes, matcher = [], [], self.proposal_matcher
        for own, target, size in zip(anchors, targets, self.image_sizes):
            allowed = self._allowed(own, size)
            # with an empty box, because there may be no other
            objects = F.pad(target["boxes"], (0, 0, 0, 1))
            iou = ops.box_iou(objects, own) * allowed
            highest, nearest = iou.max(0)
            # an object that no anchor meets has no best one; else every anchor would be, with 0
            best = ((iou == iou.amax(1, keepdim=True)) & (iou > 0)).any(0)
            label = torch.where(highest < matcher.low_threshold, 0.0, -1.0)
            label = label.masked_fill(best | (highest >= matcher.high_threshold), 1.0)
            labels.append(label.masked_fill(~allowed, -1.0))  # -1: takes no part in the loss
            boxes.append(objects[nearest])
        return labels, boxes

    def _allowed(self, anchors, size):
        """Which anchors (n, 4) may be positive or negative in an image of (height, width)."""
        left, top, right, bottom = anchors.unbind(1)
        inside = (left >= 0) & (top >= 0) & (right <= size[1]) & (bottom <= size[0])
        # no anchor is inside an image that is smaller than all of them
        return inside | ~inside.any() if self.inside_only else torch.ones_like(inside)


class RegionPool(nn.Module):
    """Regions of a map as `side` x `side` cells: RoIAlign, or RoI pooling as in the paper."""

    def __init__(self, side, stride, align):
        super().__init__()
        self.side, self.scale, self.align = side, 1 / stride, align

    def forward(self, features, boxes, image_shapes):
        (x,) = features.values()
        if self.align:
            return ops.roi_align(x, boxes, self.side, self.scale, sampling_ratio=2)
        return ops.roi_pool(x, boxes, self.side, self.scale)


class RegionHeads(RoIHeads):
    """torchvision's RoIHeads without masks and keypoints.

    background: least IoU of a negative region; if it is above 0, proposals in a crowd are left out
    (as in py-faster-rcnn). beta: where smooth L1 turns from square to linear.
    """

    background, beta = 0.0, 1 / 9

    def forward(self, features, proposals, image_shapes, targets=None):
        if self.training:
            chosen = self.select_training_samples(proposals, targets)
            proposals, _, labels, regression = chosen
        pooled = self.box_roi_pool(features, proposals, image_shapes)
        logits, deltas = map(wide, self.box_predictor(self.box_head(pooled)))
        if self.training:
            found = region_losses(
                logits, deltas, torch.cat(labels), torch.cat(regression), self.beta
            )
            return [], dict(zip(("classifier", "box"), found))
        found = self.postprocess_detections(logits, deltas, proposals, image_shapes)
        return [_on_host(*parts) for parts in zip(*found)], {}

    def subsample(self, labels):
        return [torch.cat(draw(self.fg_bg_sampler, own)).sort().values for own in labels]

    def select_training_samples(self, proposals, targets):
        self.crowds = [target.get("crowd") for target in targets]
        return super().select_training_samples(proposals, targets)

    def assign_targets_to_proposals(self, proposals, gt_boxes, gt_labels):
        matches, labels = super().assign_targets_to_proposals(proposals, gt_boxes, gt_labels)
        if self.background:
            for region, boxes, label, crowd in zip(proposals, gt_boxes, labels, self.crowds):
                if len(boxes):
                    best = ops.box_iou(boxes, region).max(0).values
                    label[(label == 0) & (best < self.background)] = -1
                if crowd is not None and len(crowd):
                    hidden = share_inside(region, crowd.to(region)) > CROWD
                    hidden[len(region) - len(boxes) :] = False  # the objects themselves
                    label[hidden] = -1
        return matches, labels


def _on_host(boxes, scores, labels):
    """What was found in an image, copied at once."""
    rows = torch.cat([boxes, scores[:, None], labels[:, None]], 1).cpu()
    return {"boxes": rows[:, :4], "scores": rows[:, 4], "labels": rows[:, 5].long()}


def region_losses(logits, deltas, labels, regression, beta):
    """(cross entropy, smooth L1 of the positive regions) of R regions, both divided by R."""
    positive = torch.where(labels > 0)[0]
    deltas = deltas.view(len(labels), -1, 4)[positive, labels[positive]]
    box = F.smooth_l1_loss(deltas, regression[positive], beta=beta, reduction="sum")
    return F.cross_entropy(logits, labels), box / labels.numel()


def share_inside(boxes, crowd):
    """The largest share of each box (N, 4) that lies in one of the crowd's boxes (M, 4)."""
    corner = torch.max(boxes[:, None, :2], crowd[:, :2])
    other = torch.min(boxes[:, None, 2:], crowd[:, 2:])
    covered = (other - corner).clamp(min=0).prod(2)  # (N, M)
    return (covered / ops.box_area(boxes)[:, None]).max(1).values


def predictor(channels, classes):
    """The last two layers, initialised as in py-faster-rcnn; class 0 is the background."""
    layers = FastRCNNPredictor(channels, classes + 1)
    for layer, std in ((layers.cls_score, 0.01), (layers.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    return layers


class FrozenBatchNorm2d(nn.Module):
    """A batch norm whose four vectors are buffers, so that none is trained."""

    def __init__(self, norm):
        super().__init__()
        self.eps, self.folded = norm.eps, False
        for name, tensor in norm.state_dict().items():
            self.register_buffer(name, tensor)

    def forward(self, x):  # (N, C, H, W)
        if self.folded:
            return x  # done by the convolution before
        statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, self.weight, self.bias, eps=self.eps)


class FoldedConv2d(nn.Conv2d):
    """A convolution with the frozen batch norm after it, `norm[0]`. Only freeze_norms makes it."""

    def forward(self, x):
        norm = self.norm[0]
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        weight, shift = self.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale
        return F.conv2d(x, weight, shift, self.stride, self.padding, self.dilation, self.groups)


def freeze_norms(model):
    """Freeze every batch norm of a model, in place; returns the model."""
    pairs = [(model.get_submodule(conv), norm) for conv, norm in fold.pairs(model)]
    for name, norm in list(model.named_modules()):
        if isinstance(norm, nn.BatchNorm2d):
            model.set_submodule(name, FrozenBatchNorm2d(norm))
    for conv, name in pairs:
        norm = model.get_submodule(name)
        norm.folded = True
        conv.__class__ = FoldedConv2d  # the same layer under the same name
        conv.norm = (norm,)  # in a tuple, because the norm is already registered elsewhere
    return model
