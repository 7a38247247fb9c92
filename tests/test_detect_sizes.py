"""The sizes of a detector's parts, by the sizes of torchvision's nets and by arithmetic."""

from support.detectors import SETTINGS, SPEC, detector

import complexity
import models
from models.resnet import resnet
from storage import atomic


def test_parts_of_a_resnet_50(tmp_path, capsys):
    net = resnet(50)
    net.input_spec = SPEC
    settings = {"anchors": [64, 128, 256, 512], "scale": 600, "largest": 1000}
    settings["proposals"] = [12000, 2000, 6000, 300]
    model = detector(shared=False, net=net, **settings)
    path = str(tmp_path / "detector.pth")
    atomic.save(path, models.pack(model))
    found = {name: rest for name, *rest in complexity.detector_parts(model.to("meta"))[0]}
    trunk, rpn, stage, last = (
        found[name] for name in ("trunk", "RPN", "last stage x 300", "predictor x 300")
    )
    assert found["RPN's trunk"] == trunk and trunk[0] == (1024, 38, 64)
    # weights of convolutions only: batch norms are constants
    whole = sum(p.numel() for n, p in net.named_parameters() if p.dim() == 4)
    assert trunk[1] + stage[1] == whole
    places = 38 * 64
    assert rpn[1] == 1024 * 1024 * 9 + 1024 + 1024 * 60 + 60  # 12 anchors of 1 + 4 numbers
    assert rpn[2] == places * (1024 * (1024 * 9 + 1) + 60 * (1024 + 1))
    assert last[1] == 2049 * 5 * 5  # four classes and the background
    assert last[2] == 300 * last[1]
    # a 7 x 7 map: torchvision's ResNet-50 has its layer4 there, of so many multiply-adds
    inside = complexity.stages(net.to("meta"), complexity.layers(net.to("meta"), 224))
    assert stage[2] == 300 * next(s.multiply_adds for s in inside if s.name == "layer4")
    complexity.main(["-retrain", path])
    said = capsys.readouterr().out
    assert "608 x 1024 pixels" in said and f"{rpn[2]:,}" in said and SETTINGS["pool"] == 14
