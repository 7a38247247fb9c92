"""Scores of images by ResNeXt-50 32x4d or another net: ours, torchvision's and timm's.

On a CPU ours also runs in ONNX Runtime and OpenVINO, where these are installed. All nets have the
same weights, and their scores are compared first. What a project does unasked comes first, then
the best setting that we know of for each.
"""

import argparse
import contextlib
import copy
import os
import tempfile

import project  # noqa: F401  before all else: sets the path, names a missing package

# isort: split

import timm
import torch
import torchvision
from timing import compare, machine, rate_table

import convert
import models
from formats import model_files
from models.fold import folded
from models.resnet import resnet
from models.resnext import resnext
from runtime.errors import InputError

NETS = {  # name of ours: (our net, torchvision's and timm's name)
    "resnext50_32x4d": (lambda: resnext(50, 32, 4), "resnext50_32x4d", "resnext50_32x4d"),
    "resnext101_64x4d": (lambda: resnext(101, 64, 4), "resnext101_64x4d", "resnext101_64x4d"),
    "resnet50": (lambda: resnet(50), "resnet50", "resnet50"),
}


def main():
    """Compare, then time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", choices=NETS, default="resnext50_32x4d")
    parser.add_argument("--batch", type=int, help="default: 16, on a GPU 256")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="of the peers' ways those with such words")
    parser.add_argument("--best", action="store_true", help="compiled nets as well (minutes)")
    parser.add_argument("--precision", choices=("single", "bfloat16", "half"), default="single")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    cuda = device.type == "cuda"
    given.batch = given.batch or (256 if cuda else 16)
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = False, True
    nets = same_nets(given.net, device)
    mixed = {"bfloat16": torch.bfloat16, "half": torch.float16}.get(given.precision)
    ways = settings(*nets, given, device, mixed)
    if given.only:
        words = ("ours", "torchvision, default", *given.only)
        ways = {k: way for k, way in ways.items() if k == "ours" or k.endswith(words[1:])}
    check(ways, {"single": 1e-5, "bfloat16": 5e-2, "half": 1e-2}[given.precision])
    wait = torch.cuda.synchronize if cuda else None
    with torch.inference_mode():
        times = compare(ways, given.repetitions, wait)
    print(f"{given.net}, batch {given.batch} at 224, {given.precision}")
    about = {"setting": f"{given.net}, batch {given.batch} at 224", "precision": given.precision}
    about["layout"] = lambda way: "NCHW" if way.endswith("default") else "channels_last"
    rate_table(times, "ours", given.batch, "images", device=device, **about)
    print(machine("torchvision", "timm"))


def same_nets(name, device):
    """Ours, torchvision's and timm's net with the same weights, in evaluation mode."""
    make, theirs, timms = NETS[name]
    torch.manual_seed(0)
    nets = [make(), torchvision.models.get_model(theirs), timm.create_model(timms)]
    state = nets[0].state_dict()
    for key, tensor in state.items():  # statistics that make a batch norm do something
        if key.endswith(("running_var", "bn1.weight", "bn2.weight", "bn3.weight")):
            tensor.uniform_(0.5, 1.5)
    for net in nets:
        net.load_state_dict(state)
    return [net.to(device).eval() for net in nets]


def settings(ours, theirs, timms, given, device, mixed):
    """{name: a function that gives the scores of the batch}."""
    images = torch.randn(given.batch, 3, 224, 224, device=device)
    last = images.contiguous(memory_format=torch.channels_last)

    def way(net, images):
        def run():
            with torch.autocast(device.type, mixed, enabled=mixed is not None):
                return net(images)

        return run

    def channels_last(net):
        return copy.deepcopy(net).to(memory_format=torch.channels_last)

    ready = folded(channels_last(ours), mixed)
    ways = {
        "ours": way(ready, last),
        "torchvision, default": way(theirs, images),
        "timm, default": way(timms, images),
        "torchvision, channels_last": way(channels_last(theirs), last),
        "timm, channels_last": way(channels_last(timms), last),
        "ours, not folded": way(channels_last(ours), last),
    }
    if device.type == "cpu" and mixed is None:
        ways |= exported(ours, images)
    if given.best:
        torch._inductor.config.freezing = True  # weights become constants
        ways["ours, compiled"] = way(torch.compile(ready), last)
        ways["torchvision, channels_last, compiled"] = way(
            torch.compile(channels_last(theirs)), last
        )
        ways["timm, channels_last, compiled"] = way(torch.compile(channels_last(timms)), last)
    return ways


def exported(net, images):
    """The ways that run what convert.py writes of our net, as far as the packages are installed."""
    net.classes = net.input_spec = None
    ways, given = {}, images.numpy()
    optional = contextlib.suppress(ImportError, InputError)
    with tempfile.TemporaryDirectory() as folder, optional:
        source, target = (os.path.join(folder, f"net{ending}") for ending in (".pth", ".onnx"))
        model_files.write(source, models.pack(net))
        convert.convert(source, target)
        run = models.load(target)
        ways["ours, .onnx in ONNX Runtime"] = lambda: run(images)
        import openvino

        settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
        settings["INFERENCE_PRECISION_HINT"] = "f32"
        compiled = openvino.Core().compile_model(target, "CPU", settings)
        ways["ours, .onnx in OpenVINO"] = lambda: torch.from_numpy(compiled(given)["scores"])
    return ways


@torch.inference_mode()
def check(ways, tolerance):
    """All scores are torchvision's, relative to the largest."""
    expected = ways["torchvision, default"]().float()
    for name, way in ways.items():
        difference = float((way().float() - expected).abs().max() / expected.abs().max())
        print(f"{name}: scores differ from torchvision's by {difference:.1e} of the largest")
        assert difference <= tolerance, name


if __name__ == "__main__":
    main()
