"""Sizes against the paper, what torchvision, timm and others publish, and plain arithmetic."""

import re

import pytest
import torch
import torchvision

import complexity
import datasets
import models
import opts
from models.preresnet import preresnet
from models.preresnext import preresnext
from models.resnet import resnet
from models.resnext import resnext
from runtime import command
from runtime.errors import InputError
from storage import atomic


def meta(net, *arguments, **named):
    with torch.device("meta"):
        return net(*arguments, **named)


def totals(net, size):
    return complexity.total(complexity.stages(net, complexity.layers(net, size)))


@pytest.mark.parametrize(
    "net, golden",
    [  # pycls' table of exact counts
        ((resnet, 50), (25_557_032, 4_089_185_256)),
        ((resnext, 50, 32, 4), (25_028_904, 4_230_480_872)),
    ],
)
def test_golden_counts(net, golden):
    assert totals(meta(*net), 224)[:2] == golden


PUBLISHED = {
    "ResNet18": (resnet, 18),
    "ResNet34": (resnet, 34),
    "ResNet101": (resnet, 101),
    "ResNet152": (resnet, 152),
    "ResNeXt50_32X4D": (resnext, 50, 32, 4),
    "ResNeXt101_32X8D": (resnext, 101, 32, 8),
    "ResNeXt101_64X4D": (resnext, 101, 64, 4),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_torchvisions_published_sizes(name):
    facts = getattr(torchvision.models, f"{name}_Weights").DEFAULT.meta
    parameters, multiply_adds, _ = totals(meta(*PUBLISHED[name]), 224)
    assert parameters == facts["num_params"]
    # they print thousandths and leave out the classifier's 1,000 biases
    assert multiply_adds / 1e9 == pytest.approx(facts["_ops"], abs=0.00051)


@pytest.mark.parametrize(
    "net, size, millions",
    [
        ((resnet, 50), 224, 11.115),  # fvcore, in mmengine's documentation
        ((resnext, 50, 32, 4), 224, 14.4),  # the cards of timm's models
        ((resnext, 101, 32, 8), 224, 31.2),
    ],
)
def test_published_activations(net, size, millions):
    digits = len(str(millions).split(".")[1])
    assert round(totals(meta(*net), size)[2] / 1e6, digits) == millions


def test_published_sizes_of_resnets_on_cifar():
    # Li et al., Pruning Filters for Efficient ConvNets, table 1
    for depth, parameters, multiply_adds in ((56, 0.85e6, 1.25e8), (110, 1.72e6, 2.53e8)):
        ours = totals(meta(resnet, depth, 10, "cifar", "A"), 32)
        assert ours[:2] == pytest.approx((parameters, multiply_adds), rel=0.01)


def plain(depth, c, d, classes, side, form):
    """A ResNeXt for CIFAR from the paper's formulas: {stage: (multiply-adds, activations)}."""
    found = {"conv1": (27 * 64 * side**2, 64 * side**2)}
    inputs = 64
    for stage in range(3):
        outputs, each = 256 * 2**stage, d * 2**stage
        multiply_adds = activations = 0
        for block in range((depth - 2) // 9):
            before, side = side, side // 2 if stage and not block else side
            activations += c * each * (before**2 + side**2)
            multiply_adds += c * (inputs * each * before**2 + (9 * each + outputs) * each * side**2)
            activations += (c if form == "resnext_A" else 1) * outputs * side**2
            if not block:  # the shortcut
                multiply_adds += inputs * outputs * side**2
                activations += outputs * side**2
            inputs = outputs
        found[f"layer{stage + 1}"] = (multiply_adds, activations)
    found["fc"] = (inputs * classes + classes, classes)
    return found


@pytest.mark.parametrize(
    "net, depth, c, d, classes, side, form",
    [
        (resnext, 29, 8, 64, 10, 32, "resnext_C"),
        (resnext, 20, 3, 6, 7, 16, "resnext_A"),
        (preresnext, 11, 4, 12, 10, 32, "resnext_B"),
        (preresnext, 20, 2, 16, 100, 8, "resnext_C"),
    ],
)
def test_plain_arithmetic(net, depth, c, d, classes, side, form):
    model = meta(net, depth, c, d, classes, "cifar", bottleneck=form)
    rows = complexity.stages(model, complexity.layers(model, side))
    assert {row.name: row[3:] for row in rows} == plain(depth, c, d, classes, side, form)
    outputs = {row.name: row.output for row in rows}
    assert outputs["conv1"] == (64, side, side) and outputs["layer2"] == (512, side // 2, side // 2)
    assert outputs["fc"] == (classes,)
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", ["A", "B", "C", "none"])
def test_shortcuts(kind):
    # one that fits needs nothing; C has 1x1 convolutions for all, none for no block
    model = meta(preresnet, 20, 10, "cifar", kind)
    layers = [x for x in complexity.layers(model, 32) if "downsample" in x.name]
    firsts = [16 * 32 * 16**2, 32 * 64 * 8**2]
    others = 3 * [16 * 16 * 32**2] + 2 * [32 * 32 * 16**2] + 2 * [64 * 64 * 8**2]
    expected = {"A": [], "B": firsts, "C": firsts + others, "none": []}[kind]
    assert sorted(x.multiply_adds for x in layers) == sorted(expected)


def test_the_widths_of_table_2():
    assert [complexity.width(c) for c in (1, 2, 4, 8, 32)] == [64, 40, 24, 14, 4]
    for c in range(1, 65):  # no whole number comes nearer than the two beside the root
        sizes = {d: c * (512 * d + 9 * d * d) for d in range(1, 100)}
        nearest = min(sizes, key=lambda d: abs(sizes[d] - 69632))
        assert abs(complexity.width(c) - nearest) <= 1


def test_the_tables_are_the_papers(capsys):
    complexity.main([])
    printed = capsys.readouterr().out
    rows = re.findall(r"^(ResNe.{19})(.{8})(.{8})(.{9})(.{8})(.{13})  (-.*)$", printed, re.M)
    assert len(rows) == 2 + 10 + 6 + 2 + 9
    for name, *numbers, options in rows:
        for paper, ours in (numbers[:2], numbers[2:4]):
            if "~" in paper:
                assert float(ours) == pytest.approx(
                    float(paper.strip(" ~")), rel=0.045
                )  # "roughly"
            elif paper.strip():  # to its one decimal, rounded or cut off
                assert float(ours) == pytest.approx(float(paper), abs=0.1)
        depth, c, d = re.search(r"-(\d+)(?: (\d+)x(\d+)d)?", name).groups()
        assert f"-depth {depth}" in options
        assert c is None or "preresnet" in options or f"-cardinality {c} -baseWidth {d}" in options
    assert "4,089,185,256" in printed and "4,230,480,872" in printed
    assert re.search(r"ResNeXt-29 8x64d +34.4 +34.43", printed)
    assert re.search(r"ResNeXt-29 16x64d +68.1 +68.16", printed)
    table_2 = re.findall(
        r"^ +(\d+) +(\d+) +(\d+) +(\d+) +(\d+) +~0.07 +([\d.]+) +~0.22", printed, re.M
    )
    assert len(table_2) == 5
    for c, d, our_d, wide, our_wide, parameters in table_2:
        assert d == our_d and wide == our_wide == str(int(c) * int(d))
        assert float(parameters) == pytest.approx(0.07, abs=0.0015)


def run(capsys, *argv):
    complexity.main(argv)
    return capsys.readouterr().out


def test_a_line_of_options(capsys, photos):
    command = "-depth 50 -cardinality 32 -baseWidth 4"
    assert "4,230,480,872" in run(capsys, *command.split())
    other = run(capsys, *command.split(), *"-nClasses 7 -testScale 320 -testCrop 320".split())
    assert other.startswith("One image of 320 x 320 pixels")
    assert re.search(r"^conv1 +64 x 160 x 160 ", other, re.M)
    assert re.search(r"^fc +7 +14,343 +14,343 +7$", other, re.M)
    mine = run(capsys, *command.split(), "-data", photos)
    assert re.search(r"^fc +2 ", mine, re.M)
    assert re.search(r"^fc +100 ", run(capsys, *"-dataset cifar100 -depth 20".split()), re.M)


def test_a_net_from_a_file(capsys, tmp_path):
    net = resnext(11, 2, 8, 5, "cifar")
    net.classes, net.input_spec = None, None
    path = str(tmp_path / "net.pth")
    atomic.save(path, models.pack(net))
    expected = f"{sum(p.numel() for p in net.parameters()):,}"
    assert re.search(
        rf"^total +{expected} ", run(capsys, "-dataset", "cifar10", "-retrain", path), re.M
    )


def test_a_net_from_a_file_sees_images_of_its_own_size(capsys, tmp_path):
    net, path = resnet(8, 10, "cifar"), str(tmp_path / "net.pth")
    for side, spec in ((8, {"scale": 8, "crop": 8}), (32, None)):  # of -dataset digits; unknown
        net.classes = None
        net.input_spec = spec and {**spec, "largest": 255, "mean": [0.0] * 3, "std": [1.0] * 3}
        atomic.save(path, models.pack(net))
        assert run(capsys, "-retrain", path).startswith(f"One image of {side} x {side} pixels")
        sizes = ("-dataset cifar10", 32), ("-testCrop 96 -testScale 96", 96), ("-trainCrop 96", 96)
        for words, other in sizes:
            printed = run(capsys, "-retrain", path, *words.split())
            assert printed.startswith(f"One image of {other} x {other} pixels")


@pytest.mark.parametrize("words", ["-depth 35", "-dataset cifar10 -depth 30", "-dep 50", "50"])
def test_a_bad_command_is_refused_in_one_sentence(words, capsys):
    with pytest.raises(SystemExit) as stop:
        complexity.main(words.split())
    out, error = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert error.startswith("complexity.py: ") and error.count("\n") == 1


def test_a_file_that_is_no_model_is_refused_in_one_sentence(capsys, tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(b"nothing")
    with pytest.raises(SystemExit) as stop:
        command.run(lambda: complexity.main(["-dataset", "cifar10", "-retrain", str(path)]))
    out, error = capsys.readouterr()
    assert stop.value.code == 1 and out == "" and str(path) in error and error.count("\n") == 1


def test_the_sides_are_those_of_the_images(cifar, tmp_path):
    for dataset, side in (("digits", 8), ("cifar10", 32)):
        opt = opts.parse(f"-dataset {dataset} -depth 20 -data {cifar} -gen {tmp_path}".split())
        assert datasets.create(opt)[0].images.shape[2:] == (side, side)
        assert complexity.side(opt) == side


@pytest.mark.parametrize(
    "words, error",
    [
        ("-netType resnext -depth 101 -baseWidth 1 -bottleneckType resnext_A", "33,792 paths take"),
        ("-netType preresnext -depth 101 -baseWidth 1 -bottleneckType resnext_B", "33,792 paths"),
        ("-netType resnet -dataset cifar10 -depth 9998", "4,998 blocks take minutes"),
        ("-netType preresnet -dataset digits -depth 6014", "3,006 blocks"),
        ("-netType resnext -dataset cifar100 -depth 9992", "3,330 blocks"),
        ("-netType preresnext -dataset cifar10 -depth 9992", "at most 2,000"),
    ],
)
def test_what_would_take_minutes_is_refused_at_once(monkeypatch, words, error):
    monkeypatch.setattr(complexity.models, "build", None)  # nothing is built
    with pytest.raises(InputError, match=error):
        complexity.main([*words.split(), *("-cardinality 1024" * ("_" in words)).split()])
