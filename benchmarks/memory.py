"""Peak memory, time and loss of a training step with and without -optnet true.

    python benchmarks/memory.py [-depth 50 -cardinality 32 -baseWidth 4 -batchSize 16 ...]

The options are main.py's; the images are random, of 224x224. On a GPU the peak is what was
allocated there, on the CPU the resident memory of a process of its own, PyTorch's included.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
NET = "-depth 50 -cardinality 32 -baseWidth 4 -batchSize 16"
STEPS = 3


def measure(words):
    """One JSON line: peak bytes, seconds of a step, loss of the last."""
    import torch

    import models
    import opts
    from dataloader import LAYOUT, Batch
    from train import Trainer, criterion

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "val"):
            os.mkdir(os.path.join(folder, split))  # opts insists on ImageNet's
        opt = opts.parse([*words, "-data", folder])
    torch.manual_seed(opt.manualSeed)
    model = models.setup(opt, None, [str(i) for i in range(1000)], device)
    trainer = Trainer(model, criterion(), opt, device)
    model.train()
    input = torch.randn(opt.batchSize, 3, 224, 224, device=device)
    target = torch.arange(opt.batchSize, device=device) % 1000
    batch = Batch(input.contiguous(memory_format=LAYOUT), target, [[opt.batchSize]])
    for _ in range(STEPS):
        began = time.perf_counter()
        loss = float(trainer._step(batch)[1]) / opt.batchSize
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux: kilobytes
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    print(json.dumps({"peak": peak, "seconds": seconds, "loss": loss}))


def main():
    import timing

    words = sys.argv[1:] or NET.split()
    rows = []
    for optnet in ("false", "true"):
        command = [sys.executable, __file__, "measure", *words, "-optnet", optnet]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(result.stdout.splitlines()[-1])
        cells = (f"{found['peak'] / 2**30:.2f}", f"{found['seconds']:.2f}", f"{found['loss']:.6f}")
        rows.append((f"-optnet {optnet}", *cells))
    print(f"{' '.join(words)}; {timing.machine()}")
    timing.table(("what", "peak GiB", "seconds a step", f"loss of step {STEPS}"), rows)


if __name__ == "__main__":
    measure(sys.argv[2:]) if sys.argv[1:2] == ["measure"] else main()
