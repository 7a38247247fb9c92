"""How a batch is cut: into replicas' slices, and the replicas among processes."""


def split(count, parts):
    """`count` things cut into `parts` slices; the first `count % parts` have one more."""
    each, longer = divmod(count, parts)
    ends = [i * each + min(i, longer) for i in range(parts + 1)]
    return [slice(start, end) for start, end in zip(ends, ends[1:])]


def split_sizes(batch, replicas):
    """The sizes of the replicas' slices of a batch, as DataParallelTable cuts it.

    With fewer samples than replicas the rest are idle: the list is shorter, no slice is empty.
    """
    return [part.stop - part.start for part in split(batch, replicas) if part.stop > part.start]
