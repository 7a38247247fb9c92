"""The trainer of a detector: its step, its test and its state. The loop is engine/loop.py.

Each replica is a slice of the batch with a forward and backward pass of its own, and the gradient
is the mean over the images of the batch. Random draws in a slice are a function of (seed, step,
iteration, slice). So the result does not depend on how many processes share the slices.
"""

import dataclasses

import torch
from torchvision import ops

from datasets.draws import Draws
from detection.schedule import check_place
from engine import loop
from engine.metrics import Metrics
from parallel import group
from runtime import memory
from runtime.errors import InputError

ADVICE = "a smaller -batchSize or -scale, more replicas (-nGPU), -optnet true, -precision bfloat16"
ORDER = "-batchSize, -rpnBatchSize, -epochSize or -manualSeed"
STEPS = ("rpn", "fast", "shared")
LOSSES = ("objectness", "proposal", "classifier", "box")  # the RPN's first


@dataclasses.dataclass
class DetectionMetrics(Metrics):
    """Sums over the images of one or several iterations, on all processes."""

    objectness: float = 0.0  # the losses, the RPN's first
    proposal: float = 0.0
    classifier: float = 0.0
    box: float = 0.0
    found: int = 0  # boxes; in a test of the RPN, objects covered by a proposal
    objects: int = 0  # in a test of the RPN

    @property
    def losses(self):
        """{name: mean over the images} of the LOSSES that the step has."""
        sums = {name: getattr(self, name) for name in LOSSES}
        return {name: value / self.seen for name, value in sums.items() if value}

    def means(self):
        """The total loss, and each loss that the step has."""
        return {"loss": self.mean_loss, **self.losses}

    def train_text(self):
        """Each loss that the step has."""
        return "  ".join(f"{name} {loss:1.4f}" for name, loss in self.losses.items())

    def test_text(self, total):
        """How many boxes were found."""
        return f"found {self.found} ({total.found})"


class ProposalMetrics(DetectionMetrics):
    """The metrics of a test of the RPN's proposals."""

    @property
    def recall(self):
        """Objects covered by a proposal, in %."""
        return 100 * self.found / max(1, self.objects)

    def test_text(self, total):
        """How many of the objects are covered."""
        return f"recall {self.recall:7.3f} ({total.recall:7.3f})"


class Trainer(loop.Loop):
    """Trains and tests one detector."""

    METRICS = DetectionMetrics

    def __init__(self, model, device, steps=(), seed=0, momentum=0.9, decay=0.0, **more):
        """steps: see schedule.py; none for a test alone. decay: weight decay.

        more: arguments of Loop.
        """
        # These decide which iterations an epoch number means. An interrupted test begins again,
        # because its detections are in memory only.
        order = [*(step.batch for step in steps), *(step.every for step in steps), seed]
        super().__init__(model, device, order=order, **more)
        self.steps, self.seed = steps, seed
        self.settings = {"momentum": momentum, "weight_decay": decay}
        self.found = []  # in the last test: (place, boxes, scores, labels), by process

    def begin(self, epoch, loader):
        """Set the rate of the epoch; make the optimizer if a new step begins."""
        self.epoch, self.loader = epoch, loader
        self.begin_step(loader.step)
        self.rate = loader.step.rate_at(loader.end - 1)

    def begin_step(self, step):
        """Make the optimizer of a step, unless that is the current step."""
        if self.step_name == step.name:
            return
        self.step_name, self.parameters = step.name, self.model.trained(step.name)
        self.optimizer = optimizer(self.parameters, step.name != "shared", **self.settings)

    def step(self, batch, n):
        """Train on a batch; returns the sums of its losses, see Loop."""
        where = f"in epoch {self.epoch} after iteration {n - 1} of {self.loader.size()}"
        with self.interrupts.saving(where, self.queue.flush, n > 1):
            losses = self._backward(batch, self.loader.dataset, self.loader.start + n - 1)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {**losses, "loss": sum(losses.values())}

    def _backward(self, batch, images, iteration):
        """Forward, losses, backward; returns the sums of the losses over this process's images.

        If this fails, the run can be saved, because weights, momentum and the frozen batch norms
        have not changed.
        """
        rate = self.loader.step.rate_at(iteration)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate * parameters["times"]
        self.optimizer.zero_grad(set_to_none=True)
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        sums = {name: zero.clone() for name in LOSSES}
        self.scaler.scale(zero)  # initialises the scaler in a process without images, too
        place, before = 0, sum(map(len, batch.slices[: group.rank()]))
        seed = Draws(self.seed, STEPS.index(self.step_name), iteration).random(0, 2**52)
        codes = batch.target.tolist()  # at once, because each copy waits for the GPU
        for number, count in enumerate(batch.slices[group.rank()], before):
            part = slice(place, place + count)
            place += count
            inputs = [image[0] for image in batch.input[part]]
            targets = [
                images.target(code, image.shape[2], image.dtype)
                for code, image in zip(codes[part], inputs)
            ]
            torch.manual_seed(seed + number)  # anchors and regions are drawn at random
            with memory.out_of_memory(inputs[0].shape, self.device, ADVICE):
                with self.precision.autocast():
                    losses = self.model.losses(inputs, targets, self.step_name)
                total = sum(losses.values())
                self.scaler.scale(total * (count / batch.count)).backward()
            for name, loss in losses.items():
                sums[name] += loss.detach() * count
        self._sum_gradients()
        return sums

    def _sum_gradients(self):
        """Sum the gradients over all processes; each has its own slices' part of the mean."""
        if group.world_size() == 1:
            return
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.parameters.values()]
        flat = group.all_reduce(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients])):
            gradient.copy_(part.view_as(gradient))

    @torch.inference_mode()
    def test(self, epoch, loader):
        """Test on all images of the loader, or in the RPN step its proposals; returns the metrics.

        Sets `found`.
        """
        self.model.eval()
        proposing = self.step_name == "rpn"
        total = ProposalMetrics() if proposing else DetectionMetrics()
        self.at(epoch).test = total
        images, autocast, own = loader.dataset, self.precision.autocast, []

        def detect(batch, n):
            count = {"found": 0, "objects": 0}
            for image, code in zip(batch.input, batch.target.tolist()):
                with memory.out_of_memory(image.shape, self.device, ADVICE), autocast():
                    (found,) = self.model.detections([image[0]], proposing)
                if proposing:
                    boxes = images.target(code, image.shape[3])["boxes"].to(found["boxes"])
                    overlap = ops.box_iou(boxes, found["boxes"])
                    count["found"] += int((overlap >= 0.5).any(1).sum())
                    count["objects"] += len(boxes)
                    continue
                parts = [found[name].numpy() for name in ("boxes", "scores", "labels")]
                own.append((images.place(code), *parts))
                count["found"] += len(parts[1])
            # filled there, because a copy would wait for the GPU
            return {name: torch.full((), n, device=self.device) for name, n in count.items()}

        loop.test(epoch, loader, total, detect, self.queue, self.reporter)
        self.found = sum(group.all_gather(own), [])
        return total

    @staticmethod
    def errors(scores):
        """100 - AP and 100 - AP50, lowest for the best model; None without these scores."""
        return (100 - scores["AP"], 100 - scores["AP50"]) if "AP" in scores else None

    def state(self):
        """The trainer's part of optimState_N.pth, with the name of the current step."""
        return {**super().state(), "step": self.step_name}

    def load_state(self, state):
        """Load a state; InputError if it does not fit the detector or the schedule."""
        step = next((s for s in self.steps if s.name == state.get("step")), None)
        if step is None:
            raise InputError("the checkpoint was trained with another -shared")
        check_place(self.steps, state)
        self.begin_step(step)
        before = self.model.of_step(step.name, state.get("options", {}).get("freeze", 0))
        known = self.model.of_step(step.name)
        self.load_optimizer(state, known, before)
        self.load_position(state, ORDER)


def optimizer(parameters, twice, **settings):
    """SGD with plain momentum; `settings`: momentum and weight_decay.

    twice: biases learn at twice the rate, as in py-faster-rcnn's nets for Caffe, and without decay.
    """
    biases = [p for name, p in parameters.items() if twice and name.endswith(".bias")]
    weights = [p for name, p in parameters.items() if not (twice and name.endswith(".bias"))]
    groups = [{"params": weights, "times": 1}]
    if biases:
        groups.append({"params": biases, "times": 2, "weight_decay": 0.0})
    return loop.sgd(groups, lr=0.0, **settings)
