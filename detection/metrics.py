"""The metrics of a detector: the four losses and what it finds."""

import dataclasses

from engine.metrics import Metrics


@dataclasses.dataclass
class DetectionMetrics(Metrics):
    """Of one iteration or summed over several, over all processes."""

    objectness: float = 0.0  # sums over the images of the losses, first the RPN's
    proposal: float = 0.0
    classifier: float = 0.0
    box: float = 0.0
    found: int = 0  # boxes; in a test of the RPN, objects that a proposal covers
    objects: int = 0  # in a test of the RPN

    @property
    def losses(self):
        """{name of LOSSES: mean over the images} of those that the step has."""
        sums = {name: getattr(self, name) for name in LOSSES}
        return {name: value / self.seen for name, value in sums.items() if value}

    def means(self):
        """The loss, and each that the step has."""
        return {"loss": self.mean_loss, **self.losses}

    def train_text(self):
        """Each loss that the step has."""
        return "  ".join(f"{name} {loss:1.4f}" for name, loss in self.losses.items())

    def test_text(self, total):
        """How many boxes were found."""
        return f"found {self.found} ({total.found})"


class ProposalMetrics(DetectionMetrics):
    """Of a test of the RPN's proposals."""

    @property
    def recall(self):
        """Objects that a proposal covers, in per cent."""
        return 100 * self.found / max(1, self.objects)

    def test_text(self, total):
        """How many of the objects are covered."""
        return f"recall {self.recall:7.3f} ({total.recall:7.3f})"


# all sums that are no counts
LOSSES = [
    field.name
    for field in dataclasses.fields(DetectionMetrics)
    if field.type is float and field not in dataclasses.fields(Metrics)
]
