"""Converts a model file into another kind: python convert.py IN OUT.

IN is any file that formats/model_files.py reads. OUT is a model file of another kind or, for other
programs, the net alone in evaluation mode: .onnx, or .pt2 of torch.export.
"""

import io
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # for python -P and -I

from models.depths import BOTTLENECKS
from runtime import command, options, regular_files
from runtime.errors import InputError

EXTENSIONS = (".pth", ".safetensors", ".t7", ".onnx", ".pt2")
FORMS = tuple(form for form in BOTTLENECKS if form != "resnet")

HEAD = f"""Usage: convert.py IN OUT [options]

IN   a model: .pth of this program, .t7 of Torch7, .pth or .safetensors of torchvision or timm,
     or torchvision:NET, such as torchvision:resnext50_32x4d
OUT  what it becomes, by the extension: {", ".join(EXTENSIONS)}; or a
     folder/, for timm and transformers: its model.safetensors and config.json

.safetensors needs the package safetensors, .onnx needs onnx and onnxscript. An .onnx or .pt2 maps
transformed images (N, 3, crop, crop) to scores (N, classes), for any N. classify.py and
evaluate.py run an .onnx on the CPU, faster than the .pth.

Options:"""
OPTIONS = (
    ("form", "", str, ("", *FORMS), "Form of the paper's figure 3 for the blocks of a ResNeXt"),
    ("classes", "", str, None, "Class names: a file with one a line, or the folder train/"),
)


def main(argv=None):
    """Convert as the command line says."""
    convert(*parse(sys.argv[1:] if argv is None else list(argv)))


def parse(argv):
    """(IN, OUT, the form or None, -classes or None); -help and wrong options exit."""
    words = []
    with options.parsed(argv, "convert.py", HEAD, OPTIONS, words) as given:
        if len(words) != 2:
            raise InputError("give two files: convert.py IN OUT (see -help)")
        source, target = regular_files.model_file(words[0]), words[1]
        outputs = [("OUT", target, EXTENSIONS)]
        if target.endswith("/"):
            endings = (*EXTENSIONS, ".json")
            outputs = [(f"OUT {target}:", path, endings) for path in _of_hub(target)]
            try:
                os.makedirs(target, exist_ok=True)
            except OSError as error:
                raise InputError(f"cannot make the folder {target}: {error.strerror}") from None
        regular_files.check_outputs(outputs, [source])
        return source, target, given.get("form") or None, given.get("classes")


def _of_hub(folder):
    """The files of a model hub's folder."""
    return os.path.join(folder, "model.safetensors"), os.path.join(folder, "config.json")


def convert(source, target, form=None, classes=None):
    """Write the model `source` as `target` and print a summary.

    form: of a ResNeXt's blocks. classes: a list or a folder with the names of its classes.
    """
    # imported here, so that -help and option errors do not wait for torch
    import models
    from evaluation.scores import pooled_as_tested
    from formats import hubs, model_files
    from models import forms
    from runtime.progress import slow
    from runtime.terminal import say
    from storage import atomic

    model = models.load_file(source).eval()
    if form is not None:
        if model.config.get("bottleneck") not in FORMS:
            raise InputError(
                f"-form {form} is for the blocks of a ResNeXt; this net has other blocks"
            )
        model = forms.converted(model, form).eval()
    if classes is not None:
        from evaluation.classes import of_outputs

        model.classes = of_outputs(classes, model.fc.out_features)
    content = models.pack(model)
    if target.endswith("/"):
        target, described = _of_hub(target)
        layers = [len(part) for name, part in model.named_children() if name.startswith("layer")]
        text = json.dumps(hubs.described(content, layers), indent=1)
        atomic.write(described, text.encode())
    export = {".onnx": _onnx, ".pt2": _pt2}.get(os.path.splitext(target)[1].lower())
    if export:
        model = pooled_as_tested(model)
    with slow(f"writing {target}"):
        if export is None:
            model_files.write(target, content)
        else:
            atomic.write(target, export(target, model, model_files.describe(content)))
    say(f"=> {target}: {_summary(model)}, {os.path.getsize(target) / 1e6:.1f} MB")
    if _of_facebook(source, content["config"]):
        say("   If Facebook released these weights: CC BY-NC 4.0, not for commercial use")


def _example(model):
    """An example input for the export: two images, because it would take a batch of 1 as fixed."""
    import torch

    spec = model.input_spec or {"crop": 32 if model.config.get("stem") == "cifar" else 224}
    return torch.zeros(2, 3, spec["crop"], spec["crop"], dtype=model.fc.weight.dtype)


def _onnx(target, model, metadata):
    """The bytes of an ONNX file; `metadata` goes into its metadata properties."""
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError:
        raise InputError(
            f"{target}: this format needs packages: pip install onnx onnxscript"
        ) from None
    import torch

    program = torch.onnx.export(
        model,
        (_example(model),),
        input_names=["images"],
        output_names=["scores"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    proto = program.model_proto
    onnx.helper.set_model_props(proto, metadata)
    return proto.SerializeToString()


def _pt2(target, model, metadata):
    """The bytes of a torch.export archive; `metadata` goes into its extra files."""
    import torch

    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(model, (_example(model),), dynamic_shapes=(batch,))
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=metadata)
    return buffer.getvalue()


def _summary(model):
    """A line about the net: its name, its numeric arguments and the number of parameters."""
    shown = {name: value for name, value in model.config.items() if type(value) is int}
    words = [f"{name.replace('_', ' ')} {value}" for name, value in shown.items()]
    count = sum(parameter.numel() for parameter in model.parameters())
    return ", ".join([model.config["net"], *words, f"{count} parameters"])


def _of_facebook(source, config):
    """Whether the weights may be those that facebookresearch/ResNeXt released for Torch7."""
    from formats import model_files

    known = config["net"] == "resnext" and config["classes"] == 1000
    return known and not source.startswith("torchvision:") and model_files.kind(source) == "t7"


if __name__ == "__main__":
    command.run(main)
