"""The paper's two steps against plain restatements of py-faster-rcnn's rules, on small cases."""

import copy
import math

import numpy as np
import pytest
import torch
from support.detectors import SPEC, classifier, detector, images
from torch import nn
from torchvision.models.detection.image_list import ImageList

from detection import net, parts, trainer
from models.blocks import set_recompute
from models.preresnet import preresnet
from models.resnext import resnext


def overlap(one, other):
    """IoU of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(0, width) * max(0, height)
    return both / (area(one) + area(other) - both)


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


@pytest.fixture(scope="module")
def model():
    return detector(shared=False).double().train()


def test_anchors_and_their_labels(model):
    """Inside the image only; positive above 0.7 or an object's best, negative below 0.3."""
    height, width = 96, 128
    listed = ImageList(torch.zeros(1, 3, height, width), [(height, width)])
    feature = torch.zeros(1, 4, height // 16, width // 16, dtype=torch.float64)
    (anchors,) = model.rpn.anchor_generator(listed, [feature])
    expected = []
    for y in range(0, height, 16):
        for x in range(0, width, 16):
            for ratio in (0.5, 1, 2):  # height to width
                for side in (16, 32, 64):
                    w, h = side / math.sqrt(ratio), side * math.sqrt(ratio)
                    half = [np.round(w / 2), np.round(h / 2)]
                    expected.append([x - half[0], y - half[1], x + half[0], y + half[1]])
    np.testing.assert_array_equal(anchors.numpy(), expected)
    objects = [[30, 20, 64, 52], [70.0, 40, 90, 90], [0, 0, 9, 9]]
    target = {"boxes": torch.tensor(objects, dtype=torch.float64)}
    model.rpn.image_sizes = listed.image_sizes
    labels, matched = model.rpn.assign_targets_to_anchors([anchors], [target])
    inside = [a[0] >= 0 and a[1] >= 0 and a[2] <= width and a[3] <= height for a in expected]
    best = [max(overlap(o, a) for a, k in zip(expected, inside) if k) for o in objects]
    counts = {-1: 0, 0: 0, 1: 0}
    for k, anchor in enumerate(expected):
        label = -1
        if inside[k]:
            ious = [overlap(o, anchor) for o in objects]
            label = 0 if max(ious) < 0.3 else -1
            if max(ious) >= 0.7 or any(i == b for i, b in zip(ious, best) if b > 0):
                label = 1
            if label == 1:
                assert matched[0][k].tolist() == objects[int(np.argmax(ious))]
        assert labels[0][k] == label, (k, anchor)
        counts[label] += 1
    assert min(counts.values()) > 0


def encoded(target, anchor):
    """What the RPN learns: shift of the centre in sides of the anchor, logarithm of the growth."""
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    return [
        (target[0] + target[2] - anchor[0] - anchor[2]) / 2 / width,
        (target[1] + target[3] - anchor[1] - anchor[3]) / 2 / height,
        math.log((target[2] - target[0]) / width),
        math.log((target[3] - target[1]) / height),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("size", [(70, 96), (12, 9)], ids=["large", "smaller than all anchors"])
def test_the_rpn_learns_the_way_from_anchor_to_object(shared, dtype, size, monkeypatch):
    rpn = detector(shared, classifier(8, 2, "cifar", "A")).rpn.to(dtype).train()
    rpn.proposes, learned = False, []
    _, targets = images(size, size)
    targets = [{**target, "boxes": target["boxes"].to(dtype)} for target in targets]
    listed = ImageList(torch.zeros(2, 3, *size, dtype=dtype), [size, size])
    maps = torch.zeros(2, rpn.head.cls_logits.in_channels, 6, 6, dtype=dtype)
    before = rpn.anchor_generator(listed, [maps])
    given = [anchors.clone() for anchors in before]
    monkeypatch.setattr(rpn.anchor_generator, "forward", lambda *_: given)
    loss = rpn.compute_loss
    monkeypatch.setattr(rpn, "compute_loss", lambda *args: learned.extend(args[2:]) or loss(*args))
    rpn(listed, {"0": maps}, targets)
    assert all(map(torch.equal, given, before))
    for anchors, labels, goals, target in zip(before, *learned, targets):
        positive = torch.where(labels == 1)[0].tolist()
        assert positive
        for k in positive:
            anchor, objects = anchors[k].tolist(), target["boxes"].tolist()
            nearest = max(objects, key=lambda box: overlap(box, anchor))
            expected = torch.tensor(encoded(nearest, anchor), dtype=dtype)
            torch.testing.assert_close(goals[k], expected, rtol=1e-4, atol=1e-5)
            assert goals[k].abs().max() > 0.01  # no anchor here is an object


@pytest.mark.parametrize("shared", [False, True])
def test_an_object_that_no_anchor_meets_has_no_best_one(shared):
    rpn = detector(shared, classifier(8, 2, "cifar", "A")).rpn
    rpn.image_sizes = [(40, 90)]
    anchors = torch.tensor([[0.0, 0, 20, 20], [60, 10, 80, 30], [62, 10, 82, 30]])
    far, near = [85.0, 0, 90, 40], [60.0, 10, 80, 31]
    for objects, expected in (([far, near], [0, 1, 1]), ([near], [0, 1, 1]), ([far], [0, 0, 0])):
        target = {"boxes": torch.tensor(objects)}
        (labels,), (matched,) = rpn.assign_targets_to_anchors([anchors], [target])
        assert labels.tolist() == expected
        assert all(box == near for box, label in zip(matched.tolist(), labels) if label == 1)


NARROW = {
    **{"1 x 1": {}, "1 x 201": {}, "201 x 1": {}, "2 x 3": {}, "98 x 49": {"scale": 1}},
    **{"30 x 40": {"largest": 1}, "40 x 30": {"scale": 1, "largest": 1}},
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("size", NARROW)
def test_narrow_images(size, shared):
    """A side that would have no pixel has one; training and test go through."""
    height, width = map(int, size.split(" x "))
    settings = {"scale": 48, "largest": 96, **NARROW[size]}
    model = detector(shared, classifier(8, 2, "cifar", "A"), **settings).double()
    inputs, _ = images((height, width))
    whole = torch.tensor([[0, 0, width, height]]).double()
    target = {"boxes": whole, "labels": torch.tensor([1])}
    times = min(settings["scale"] / min(height, width), settings["largest"] / max(height, width))
    listed, _ = model._transformed(inputs)
    assert listed.image_sizes == [tuple(max(1, int(side * times)) for side in (height, width))]
    for step in ("shared",) if shared else ("rpn", "fast"):
        losses = model.train().losses(inputs, [dict(target)], step)
        assert all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        (found,) = model.eval().detections(inputs)
        (proposals,) = model.detections(inputs, proposing=True)
    limits = torch.tensor([width, height, width, height])
    for boxes in (found["boxes"], proposals["boxes"]):
        assert (boxes >= 0).all() and (boxes <= limits * (1 + 1e-6)).all()


def test_regions_and_their_labels(model):
    """Positive from 0.5, negative from 0.1 to 0.5, none in a crowd; the objects are among them."""
    random = np.random.default_rng(3)
    objects = np.array([[10, 10, 50, 40], [60, 20, 90, 80.0]])
    crowd = np.array([[0, 60, 40, 96.0]])
    near = objects[random.integers(2, size=60)] + random.uniform(-14, 14, (60, 4))
    corner = random.uniform(0, 70, (60, 2))
    regions = np.concatenate([near, np.concatenate([corner, corner + 20], 1)])
    target = {
        "boxes": torch.from_numpy(objects),
        "labels": torch.tensor([3, 1]),
        "crowd": torch.from_numpy(crowd),
    }
    heads = model.roi_heads
    heads.crowds = [target["crowd"]]
    every = heads.add_gt_proposals([torch.from_numpy(regions)], [target["boxes"]])
    matches, labels = heads.assign_targets_to_proposals(
        every, [target["boxes"]], [target["labels"]]
    )
    seen = set()
    for k, region in enumerate(np.concatenate([regions, objects])):
        ious = [overlap(o, region) for o in objects]
        width = min(region[2], 40) - max(region[0], 0)
        height = min(region[3], 96) - max(region[1], 60)
        hidden = max(0, width) * max(0, height) / area(region) > 0.7 and k < len(regions)
        label = [3, 1][int(np.argmax(ious))] if max(ious) >= 0.5 else 0 if max(ious) >= 0.1 else -1
        label = -1 if hidden else label
        assert labels[0][k] == label
        seen.add((label, bool(hidden)))
    assert seen == {(3, False), (1, False), (0, False), (-1, False), (-1, True)}


def test_objects_and_crowds_are_resized_with_the_image(model):
    """60 x 80 pixels become 120 x 160."""
    boxes = torch.tensor([[10, 10, 50, 40], [60, 20, 80, 55.0]]).double()
    target = {"boxes": boxes, "labels": torch.tensor([3, 1]), "crowd": boxes[1:]}
    larger = detector(shared=False, scale=120, largest=200).double().train()
    _, (found,) = larger._transformed([torch.zeros(3, 60, 80).double()], [target])
    torch.testing.assert_close(found["boxes"], 2 * boxes)
    torch.testing.assert_close(found["crowd"], 2 * boxes[1:])


def test_proposals(model):
    """Decoded, cut at the border, too small ones dropped, then NMS at 0.7, the best first."""
    random = np.random.default_rng(4)
    count = 80
    corner = random.uniform(-10, 80, (count, 2))
    boxes = np.concatenate([corner, corner + random.uniform(2, 60, (count, 2))], 1)
    logits = random.normal(size=count)
    model.rpn.numbers = "testing"
    found, _ = model.rpn.filter_proposals(
        torch.from_numpy(boxes)[None], torch.from_numpy(logits)[None], [(96, 90)], [count]
    )
    cut = np.clip(boxes, 0, [90, 96, 90, 96])
    kept = []
    for k in np.argsort(-logits):
        if min(cut[k][2] - cut[k][0], cut[k][3] - cut[k][1]) < 4:  # a quarter of an anchor of 16
            continue
        if all(overlap(cut[k], other) <= 0.7 for other in kept):
            kept.append(cut[k])
    np.testing.assert_allclose(found[0].numpy(), kept[:50], atol=1e-12)
    assert 20 < len(kept) < count


def test_pooling():
    """RoI pooling: whole cells, rounded, the largest value in each."""
    x = torch.randn(1, 2, 12, 15, dtype=torch.float64)
    box = [13.0, 20, 100, 150]
    pooled = parts.RegionPool(4, 16, align=False)({"0": x}, [torch.tensor([box]).double()], None)
    left, top, right, bottom = (round(v / 16) for v in box)
    rows, columns = bottom - top + 1, right - left + 1
    for i in range(4):
        for j in range(4):
            y = [top + math.floor(i * rows / 4), top + math.ceil((i + 1) * rows / 4)]
            z = [left + math.floor(j * columns / 4), left + math.ceil((j + 1) * columns / 4)]
            assert torch.equal(pooled[0, :, i, j], x[0, :, y[0] : y[1], z[0] : z[1]].amax((1, 2)))


def test_losses_of_regions():
    """Cross entropy; smooth L1 of the positive regions' own class, over all of them."""
    torch.manual_seed(0)
    logits, deltas = torch.randn(5, 4).double(), 2 * torch.randn(5, 16).double()
    labels, goal = torch.tensor([0, 3, 1, 0, 2]), torch.randn(5, 4).double()
    for beta in (1.0, 1 / 9):
        total = 0
        for r, label in enumerate(labels.tolist()):
            for k in range(4) if label else ():
                far = abs(float(deltas[r, 4 * label + k] - goal[r, k]))
                total += 0.5 * far**2 / beta if far < beta else far - 0.5 * beta
        entropy = sum(-math.log(logits[r].softmax(0)[label]) for r, label in enumerate(labels)) / 5
        found = parts.region_losses(logits, deltas, labels, goal, beta)
        assert found[0].item() == pytest.approx(entropy) and found[1].item() == pytest.approx(
            total / 5
        )


@pytest.mark.parametrize("step", ["rpn", "fast", "shared"])
def test_what_is_given_stays_as_it_is(step):
    model = detector(step == "shared", classifier(8, 2, "cifar", "A")).double()
    inputs, targets = images((70, 96), (96, 96))  # the second one is not resized
    for target in targets:
        target["crowd"] = target["boxes"][:1].clone()
    before = copy.deepcopy((inputs, targets))
    model.train().losses(inputs, targets, step)
    with torch.no_grad():
        model.eval().detections(inputs)
    assert all(map(torch.equal, inputs, before[0]))
    for target, other in zip(targets, before[1]):
        assert target.keys() == other.keys()
        assert all(torch.equal(target[name], other[name]) for name in target)


def test_each_step_trains_its_own_net(model):
    inputs, targets = images((70, 96), (96, 60))
    seen = {}
    for step, names in (("rpn", ["objectness", "proposal"]), ("fast", ["classifier", "box"])):
        model.zero_grad(set_to_none=True)
        losses = model.losses(inputs, targets, step)
        assert list(losses) == names
        sum(losses.values()).backward()
        seen[step] = {name for name, p in model.named_parameters() if p.grad is not None}
        assert seen[step] == model.trained(step).keys()
    assert not seen["rpn"] & seen["fast"]
    assert seen["rpn"] | seen["fast"] == {name for name, _ in model.named_parameters()}


def test_the_fast_step_sees_the_proposals_of_the_rpn(model, monkeypatch):
    inputs, targets = images((70, 96))
    seen = []
    monkeypatch.setattr(
        parts.RegionHeads, "select_training_samples", lambda self, p, t: seen.append(p) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        model.losses(inputs, targets, "fast")
    monkeypatch.undo()
    model.rpn.numbers, model.rpn.proposes = "training", True
    listed, _ = model.transform(inputs, None)
    with torch.no_grad():
        expected, _ = model.rpn.eval()(listed, {"0": model.rpn_backbone(listed.tensors)})
    torch.testing.assert_close(seen[0][0], expected[0], rtol=1e-9, atol=1e-9)
    assert 50 < len(expected[0]) <= 100


NETS = {
    "resnet": lambda: classifier(18, 2),
    "bottleneck": lambda: classifier(50, 2),
    "cifar": lambda: classifier(8, 2, "cifar", "A"),
    "resnext": lambda: resnext(11, 4, 8, 10, "cifar"),
    "form A": lambda: resnext(11, 2, 8, 10, "cifar", bottleneck="resnext_A"),
    "preresnet": lambda: preresnet(18, 10),
    "preresnet cifar": lambda: preresnet(8, 10, "cifar", "A"),
}


@pytest.mark.parametrize("kind", NETS)
def test_trunk_and_last_stage_are_the_net(kind):
    """Frozen and folded, with the gradients of batch norms that are set to their evaluation."""
    plain = NETS[kind]().double().eval()
    plain.input_spec = SPEC
    model = detector(shared=True, net=plain).double().train()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    mine = model.roi_heads.box_head(model.backbone(x))
    torch.testing.assert_close(mine, plain.features(x), rtol=1e-9, atol=1e-9)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    mine.square().sum().backward()
    found = {
        name: p.grad
        for part in (model.backbone, model.roi_heads.box_head)
        for name, p in part.named_parameters()
    }
    plain.features(x).square().sum().backward()
    weights = {name: p.grad for name, p in plain.named_parameters() if p.dim() == 4}
    assert found.keys() == weights.keys()
    for name, gradient in weights.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-9)


def test_most_batch_norms_are_folded():
    model = parts.freeze_norms(net.Trunk(classifier(18, 2)))
    norms = [m for m in model.modules() if isinstance(m, parts.FrozenBatchNorm2d)]
    assert len(norms) == 15 and all(norm.folded for norm in norms)


def test_recomputed_blocks_give_the_same_gradients():
    inputs, targets = images((64, 64))
    found = []
    for recompute in (False, True):
        model = detector(net=classifier(8, 2, "cifar", "A")).double().train()
        if recompute:
            set_recompute(model)
        torch.manual_seed(1)
        losses = model.losses(inputs, targets, "shared")
        sum(losses.values()).backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_wide_boxes_in_half_precision():
    model = detector(net=classifier(8, 2, "cifar", "A")).train()
    inputs, targets = images((64, 64))
    inputs = [image.float() for image in inputs]
    targets = [{**target, "boxes": target["boxes"].float()} for target in targets]
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(inputs, targets, "shared")
        found = model.eval().detections(inputs)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert found[0]["boxes"].dtype == torch.float32
    assert not torch.equal(found[0]["boxes"], found[0]["boxes"].bfloat16().float())


@pytest.mark.parametrize("twice", [False, True])
def test_weights_and_biases_learn_by_caffes_rule(twice):
    """v = 0.9 v + r (g + decay w), w -= v. Biases: twice the rate, no decay (docs/detection.md)."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(3, 2)).double()
    expected = {n: [p.detach().clone(), torch.zeros_like(p)] for n, p in layer.named_parameters()}
    optimizer = trainer.optimizer(
        dict(layer.named_parameters()), twice, momentum=0.9, weight_decay=0.1
    )
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * group["times"]
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.ones(4, 3).double()).square().sum().backward()
        for name, parameter in layer.named_parameters():
            (weight, step), special = expected[name], twice and name == "0.bias"
            rate, decay = (0.02, 0) if special else (0.01, 0.1)
            step.mul_(0.9).add_(rate * (parameter.grad + decay * weight))
            weight.sub_(step)
        optimizer.step()
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name][0])
