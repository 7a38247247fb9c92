"""What a run leaves on disk: the run folder, atomic writes, lock, log and state schema."""
