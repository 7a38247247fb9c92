"""The metrics of a detector: the four losses and what it finds."""

import dataclasses

from engine.metrics import Metrics


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


# all fields that are not counts
LOSSES = [
    field.name
    for field in dataclasses.fields(DetectionMetrics)
    if field.type is float and field not in dataclasses.fields(Metrics)
]
