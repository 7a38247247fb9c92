"""How a batch is cut into replica slices, and the replicas are dealt to processes."""


def split(count, parts):
    """range(count) cut into `parts` slices; the first `count % parts` are longer by one."""
    each, longer = divmod(count, parts)
    ends = [i * each + min(i, longer) for i in range(parts + 1)]
    return [slice(start, end) for start, end in zip(ends, ends[1:])]


def split_sizes(batch, replicas):
    """The sizes of the replica slices of a batch, as DataParallelTable cuts it.

    With fewer samples than replicas the list is shorter: no slice is empty, some replicas idle.
    """
    return [part.stop - part.start for part in split(batch, replicas) if part.stop > part.start]
