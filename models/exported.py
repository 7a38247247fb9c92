"""A net in an .onnx file of convert.py, run by ONNX Runtime on the CPU."""

import types

import torch
from torch import nn

from formats import model_files
from runtime import regular_files
from runtime.errors import InputError

_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
}


class Exported(nn.Module):
    """Called like any net, but without parameters, `maps` and `features`; in the file's dtype."""

    def __init__(self, path):
        super().__init__()
        self.path, self.session = path, _session(path)
        places = [*self.session.get_inputs(), *self.session.get_outputs()]
        match [(place.name, place.type, place.shape) for place in places]:
            case [
                ("images", dtype, [str(), 3, int(side), _]),
                ("scores", _, [str(), int(count)]),
            ] if dtype in _DTYPES:
                self.dtype, self.side = _DTYPES[dtype], side
            case found:
                found = " ".join(f"{name} {shape}" for name, _, shape in found)
                raise InputError(
                    f"{path} has the inputs and outputs {found}; should be images (N, 3, crop,"
                    " crop) and scores (N, classes) for any N, as convert.py writes"
                )
        about = model_files.described(path, self.session.get_modelmeta().custom_metadata_map)
        about = model_files.classes_and_spec(path, about, count)
        self.classes, self.input_spec = about["classes"], about["preprocessing"]
        self.config, self.fc = {"net": "of an .onnx"}, types.SimpleNamespace(out_features=count)

    def __deepcopy__(self, memo):
        return self  # it cannot change, and a session cannot be copied

    def forward(self, images):
        """The scores (N, classes) in float32, on the images' device."""
        if images.shape[2:] != (self.side, self.side):
            raise InputError(
                f"{self.path} only takes images of {self.side} x {self.side} pixels, not"
                f" {images.shape[2]} x {images.shape[3]}: test the file that it was made from"
            )
        given = {"images": images.detach().to("cpu", self.dtype).numpy()}
        (scores,) = self.session.run(["scores"], given)
        return torch.from_numpy(scores).to(images.device, torch.float32)


def _session(path):
    regular_files.check_input(path)
    try:
        import onnxruntime
    except ImportError:
        raise InputError(f"{path}: this format needs a package: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    with regular_files.opened(path) as file:
        content = file.read()
    try:
        return onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    except Exception as error:  # its errors have no other class in common
        reason = str(error).rpartition(" : ")[2].splitlines()[0]
        raise InputError(f"{path} cannot be run by ONNX Runtime: {reason}") from None
