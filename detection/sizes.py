"""How large the parts of a detector are, counted as complexity.py counts a classifier."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def parts(model, height, width):
    """(name, output, parameters, multiply-adds, activations) of each part, for one image in a test.

    model: a Detector on the meta device. The image has height x width pixels, as the net sees it.
    """
    image = torch.empty(1, 3, height, width, device="meta")
    trunks = {"trunk": model.backbone}
    if not model.config["shared"]:
        trunks = {"RPN's trunk": model.rpn_backbone, **trunks}
    found = [(name, *_measured(trunk, image)) for name, trunk in trunks.items()]
    maps = torch.empty(1, *found[0][1], device="meta")
    found.append(("RPN", *_measured(_Once(model.rpn.head), maps)))
    count, side = model.config["proposals"][3], model.config["pool"]
    regions = torch.empty(count, maps.shape[1], side, side, device="meta")
    head, predictor = model.roi_heads.box_head, model.roi_heads.box_predictor
    found.append((f"last stage x {count}", *_measured(head, regions)))
    features = torch.empty(count, head.out_channels, device="meta")
    found.append((f"predictor x {count}", *_measured(_Once(predictor), features)))
    return found


class _Once(nn.Module):
    """A part with several outputs, of which the first one is measured."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        output = self.module([x] if x.dim() == 4 else x)[0]
        return output[0] if isinstance(output, list) else output


def _measured(module, x):
    """(output without the batch, parameters, multiply-adds, activations)."""
    outputs, biases = [], []

    def look(layer, _, output):
        outputs.append(output.numel())
        biases.append(output.numel() if layer.bias is not None else 0)

    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(look) for layer in layers]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = module.eval()(x)
    for hook in hooks:
        hook.remove()
    parameters = sum(p.numel() for p in module.parameters())
    multiply_adds = counter.get_total_flops() // 2 + sum(biases)
    return tuple(output.shape[1:]), parameters, multiply_adds, sum(outputs)
