"""The test loop of main.py and of evaluate.py."""

from evaluation.metrics import batches
from runtime.errors import InputError


def test(epoch, loader, total, count_errors, queue, reporter):
    """Test the batches after the first `total.done`, and add their metrics to `total`, a Metrics.

    count_errors(batch): {"wrong1": tensor, ...}, how many of this process's images are wrong.
    queue: the MetricQueue. InputError if no image could be read.
    """
    size = loader.size()

    def report(metrics):
        total.add(metrics)
        reporter.test(epoch, size, metrics, total)

    def where(n):
        return f"in the test of epoch {epoch} after batch {n} of {size}"

    queue.start(report)
    for n, batch, data_wait in batches(loader, epoch, total.done, queue, where):
        metrics = type(total)(done=n, seen=batch.count, data_wait=data_wait, odd=batch.odd)
        queue.push(metrics, count_errors(batch))
        queue.poll(where(n))
    queue.poll(where(size), lag=0)
    if not total.seen:
        raise InputError("no validation image could be read")
