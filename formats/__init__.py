"""Reads and writes model files, ours and others'. A net is a configuration here, not a module."""
