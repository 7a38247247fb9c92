"""The detector of -shared true is torchvision's FasterRCNN of the same weights, put together."""

import pytest
import torch
from support.detectors import classifier, detector, images, torchvisions

SIZES = ((70, 96), (96, 60), (64, 64))  # of different shapes, the last without a box


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(3)
    ours = detector(pool=4, regions=12)
    with torch.no_grad():  # larger than at the start, so that boxes move and scores differ
        for layer in (ours.rpn.head.bbox_pred, ours.roi_heads.box_predictor.bbox_pred):
            layer.weight.normal_(0, 0.02)
        ours.rpn.head.cls_logits.weight.normal_(0, 0.1)
        ours.roi_heads.box_predictor.cls_score.weight.normal_(0, 0.1)
    ours = ours.double()
    return ours, torchvisions(ours)


def test_losses_and_gradients(pair):
    ours, theirs = (model.train() for model in pair)
    inputs, targets = images(*SIZES)
    torch.manual_seed(5)
    mine = ours.losses(inputs, targets, "shared")
    torch.manual_seed(5)
    other = theirs([image / 255 for image in inputs], targets)
    other = {
        "objectness": other["loss_objectness"],
        "proposal": other["loss_rpn_box_reg"],
        "classifier": other["loss_classifier"],
        "box": other["loss_box_reg"],
    }
    assert mine.keys() == other.keys()
    for name in mine:
        assert other[name].item() > 0
        torch.testing.assert_close(mine[name], other[name], rtol=1e-9, atol=0)
    gradients = []
    for model, losses in ((ours, mine), (theirs, other)):
        names, parameters = zip(*model.named_parameters())
        gradients.append(dict(zip(names, torch.autograd.grad(sum(losses.values()), parameters))))
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 25
    for name, gradient in gradients[0].items():
        far = (gradient - gradients[1][name]).norm() / gradients[1][name].norm()
        assert far < 1e-9, name


def test_boxes(pair):
    ours, theirs = (model.eval() for model in pair)
    inputs, _ = images(*SIZES)
    with torch.no_grad():
        mine, other = ours.detections(inputs), theirs([image / 255 for image in inputs])
    assert all(len(found["boxes"]) > 10 for found in other)
    for found, expected in zip(mine, other):
        for name in ("boxes", "scores", "labels"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-7)


def test_the_weights_are_the_classifiers_name_by_name():
    net = classifier(18, 2, seed=7)
    model = detector(shared=False, net=net)
    given, found = net.state_dict(), {}
    for part in (model.backbone, model.roi_heads.box_head):
        found |= part.state_dict()
    assert found.keys() == {name for name in given if not name.startswith("fc.")}
    assert all(torch.equal(found[name], given[name]) for name in found)
    apart = model.rpn_backbone.state_dict()
    assert all(torch.equal(apart[name], given[name]) for name in apart)
    shared = {p.data_ptr() for p in model.backbone.parameters()}
    assert not shared & {p.data_ptr() for p in model.rpn_backbone.parameters()}
