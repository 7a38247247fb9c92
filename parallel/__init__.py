"""Replicas on processes: starting them, ranks and exchanges, signals."""
