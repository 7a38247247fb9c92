"""Replicas on processes: their start, the process group, signals."""
