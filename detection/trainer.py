"""The training loop of a detector, its test and its state: as train.py, with boxes for classes.

Replicas are slices of a batch, one forward and backward pass each, and the gradient is the mean
over the images of the batch. So the result does not depend on how many processes share the slices.
What is drawn at random in a slice is a function of (seed, step, iteration, slice).
"""

import dataclasses

import torch

from datasets.draws import Draws
from detection import scores
from detection.metrics import LOSSES, DetectionMetrics
from detection.reporter import Reporter
from detection.schedule import check_place
from evaluation import testing
from evaluation.metrics import MetricQueue, batches
from parallel import group
from parallel.signals import Interrupts
from runtime import memory
from runtime.errors import InputError
from runtime.precision import Precision
from runtime.terminal import say
from storage.position import resumable

ADVICE = "a smaller -batchSize or -scale, more replicas (-nGPU), -optnet true, -precision bfloat16"
ORDER = "-batchSize, -rpnBatchSize, -epochSize or -manualSeed"
STEPS = ("rpn", "fast", "shared")


@dataclasses.dataclass
class Position:
    """How far the run has come: the epoch, and what was trained in it.

    A test that was interrupted begins again: its detections are in memory only.
    """

    epoch: int | None = None
    order: list = dataclasses.field(default_factory=list)  # what the batches depend on
    train: DetectionMetrics = dataclasses.field(default_factory=DetectionMetrics)
    test: DetectionMetrics = dataclasses.field(default_factory=DetectionMetrics)
    trained: bool = False  # the epoch's training is finished


class Trainer:
    """Trains and tests one detector; `checkpoint` holds the state to go on from, if any.

    streams: of schedule.py; none for a test alone.
    """

    def __init__(
        self,
        model,
        opt,
        device,
        streams=(),
        checkpoint=None,
        reporter=None,
        interrupts=None,
        data=(),
    ):
        self.model, self.opt, self.device, self.streams = model, opt, device, streams
        self.data = list(data)  # dataloader.fingerprints
        self.reporter, self.interrupts = reporter or Reporter(), interrupts or Interrupts()
        self.queue = MetricQueue(device, self.interrupts)
        self.precision = Precision(opt.precision, device)
        self.scaler = self.precision.scaler()
        self.position, self.step, self.rate = Position(), None, 0.0
        self.found = []  # of the last test: (image id, boxes, scores, labels), by process
        if checkpoint is not None:
            self.load_state(checkpoint)

    def stream(self, epoch):
        """The stream that an epoch belongs to."""
        return next(stream for stream in self.streams if epoch <= stream.last)

    def proposes(self, epoch):
        """Whether the test of an epoch is one of the RPN's proposals; 0 is a test alone."""
        return bool(epoch) and self.stream(epoch).step.name == "rpn"

    def train(self, epoch):
        """One epoch, or what is left of it; returns its DetectionMetrics."""
        stream = self.stream(epoch)
        total, size, start = self._position(epoch).train, stream.size(epoch), stream.start(epoch)
        self._begin(stream.step)
        if total.done < size:
            say(f"=> Training epoch # {epoch} ({stream.step.name})")
        self.model.train()

        def report(metrics):
            metrics.check_finite(epoch, size)
            total.add(metrics)
            self.reporter.train(epoch, size, metrics)

        def where(n):
            return f"in epoch {epoch} after iteration {n} of {size}"

        self.queue.start(report)
        for n, batch, data_wait in batches(stream, epoch, total.done, self.queue, where):
            with self.interrupts.saving(where(n - 1), self.queue.flush, n > 1):
                losses = self._backward(batch, stream.loader.dataset, start + n - 1)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            metrics = DetectionMetrics(done=n, seen=batch.count, data_wait=data_wait, odd=batch.odd)
            self.queue.push(metrics, {**losses, "loss": sum(losses.values())})
            self.queue.poll(where(n))
        self.queue.poll(where(size), lag=0)
        if not total.seen:
            raise InputError("no training image could be read")
        self.rate = stream.step.rate_at(start + size - 1)  # none may have been left to do
        self.position.trained = True
        return total

    def _begin(self, step):
        """Make the optimizer of a step, unless it is there."""
        if self.step == step:
            return
        self.step, self.parameters = step, self.model.trained(step.name)
        self.optimizer = optimizer(self.parameters, self.opt, twice=step.name != "shared")

    def _backward(self, batch, images, iteration):
        """Forward, losses, backward; returns the losses' sums over this process's images.

        Weights and momentum stay as they are, and so do the statistics of the frozen batch norm.
        """
        rate = self.step.rate_at(iteration)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate * parameters["times"]
        self.optimizer.zero_grad(set_to_none=True)
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        sums = {name: zero.clone() for name in LOSSES}
        self.scaler.scale(zero)  # it has to begin in a process without images, too
        place, before = 0, sum(map(len, batch.slices[: group.rank()]))
        for number, count in enumerate(batch.slices[group.rank()], before):
            part = slice(place, place + count)
            place += count
            inputs = [image[0] for image in batch.input[part]]
            codes = batch.target[part].tolist()
            targets = [
                {name: value.to(self.device) for name, value in target.items()}
                for target in (
                    images.target(code, image.shape[2], image.dtype)
                    for code, image in zip(codes, inputs)
                )
            ]
            self._seed(iteration, number)
            with memory.out_of_memory(inputs[0].shape, self.device, ADVICE):
                with self.precision.autocast():
                    losses = self.model.losses(inputs, targets, self.step.name)
                total = sum(losses.values())
                self.scaler.scale(total * (count / batch.count)).backward()
            for name, loss in losses.items():
                sums[name] += loss.detach() * count
        self._sum_gradients()
        return sums

    def _seed(self, iteration, number):
        """Let torch's generators begin where this slice's do: its anchors and regions are drawn."""
        draws = Draws(self.opt.manualSeed, STEPS.index(self.step.name), iteration)
        torch.manual_seed(draws.random(0, 2**52) + number)

    def _sum_gradients(self):
        """Of several processes: each has the gradient of its own slices' part of the mean."""
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
        """Test over all images of the loader; what was found is in `found` then.

        After an epoch of the RPN its proposals are tested. Returns the DetectionMetrics.
        """
        self.model.eval()
        total = self._position(epoch).test = DetectionMetrics()
        images, own = loader.dataset, []
        self.reporter.proposing = proposing = self.proposes(epoch)

        def detect(batch):
            count = {"found": 0, "objects": 0}
            for image, code in zip(batch.input, batch.target.tolist()):
                with memory.out_of_memory(image.shape, self.device, ADVICE):
                    if proposing:
                        self._count(image[0], images.target(code, image.shape[3]), count)
                        continue
                    with self.precision.autocast():
                        (found,) = self.model([image[0]])
                parts = [found[name].cpu().numpy() for name in ("boxes", "scores", "labels")]
                own.append((images.id(code), *parts))
                count["found"] += len(parts[1])
            return {name: torch.tensor(n, device=self.device) for name, n in count.items()}

        testing.test(epoch, loader, total, detect, self.queue, self.reporter)
        self.found = sum(group.all_gather(own), [])
        return total

    def _count(self, image, target, count):
        with self.precision.autocast():
            (proposals,) = self.model.proposals([image])
        boxes = target["boxes"].to(proposals)
        count["found"] += scores.recall(boxes, proposals)
        count["objects"] += len(boxes)

    def _position(self, epoch):
        if self.position.epoch != epoch:
            self.position = Position(epoch, self._order())
        return self.position

    def _order(self):
        """What the batches of an epoch depend on."""
        batches = [stream.step.batch for stream in self.streams]
        return [*batches, *(stream.every for stream in self.streams), self.opt.manualSeed]

    def state(self):
        """What optimState_N.pth holds: the momentum of the step at hand, and the position."""
        momentum = {
            name: self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in self.parameters.items()
        }
        position = dataclasses.asdict(self.position)
        scaler = self.scaler.state_dict()
        return {
            **{"momentum": momentum, "scaler": scaler, "position": position},
            **{"step": self.step.name, "data": self.data},
        }

    def load_state(self, state):
        """Take over `state()`; what does not fit the detector or the schedule is an InputError."""
        step = next((s.step for s in self.streams if s.step.name == state.get("step")), None)
        if step is None:
            raise InputError("the checkpoint is of another kind of training: -shared differs")
        check_place(self.streams, state)
        self._begin(step)
        self._load_momentum(state, step)
        if state.get("scaler") and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        position = resumable(state, self._order(), ORDER, self.data)
        if position is not None:
            train = DetectionMetrics.restored(
                position["train"], state.get("file", "the optimState")
            )
            self.position = Position(position["epoch"], position["order"], train)
            self.position.trained = position.get("trained") is True

    def _load_momentum(self, state, step):
        """InputError for a buffer that does not fit, or that lacks for what was trained before."""
        file, momentum = state.get("file", "the optimState"), state["momentum"]
        known = self.model.of_step(step.name)
        for name, buffer in momentum.items():
            if name not in known or known[name].shape != buffer.shape:
                raise InputError(f"{file} does not belong to this detector: {name} differs")
            if name in self.parameters:  # -freeze may have been given since
                self.optimizer.state[self.parameters[name]]["momentum_buffer"].copy_(buffer)
        for name in self.model.of_step(step.name, state.get("options", {}).get("freeze", 0)):
            if name in self.parameters and name not in momentum:
                raise InputError(
                    f"{file} does not belong to this detector: its momentum lacks {name}"
                )


def optimizer(parameters, opt, twice):
    """SGD with momentum, not Nesterov's.

    twice: biases at twice the rate and without decay, as in py-faster-rcnn's nets for Caffe.
    """
    biases = [p for name, p in parameters.items() if twice and name.endswith(".bias")]
    weights = [p for name, p in parameters.items() if not (twice and name.endswith(".bias"))]
    groups = [{"params": weights, "times": 1}]
    if biases:
        groups.append({"params": biases, "times": 2, "weight_decay": 0.0})
    sgd = torch.optim.SGD(
        groups, lr=0.0, momentum=opt.momentum, weight_decay=opt.weightDecay, fused=True
    )
    for parameter in parameters.values():  # from 0 on, see train.py
        buffer = torch.zeros_like(parameter, requires_grad=False)
        sgd.state[parameter]["momentum_buffer"] = buffer
    return sgd
