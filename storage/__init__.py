"""What a run leaves on disk: atomic files, the run folder, its lock, log and state schema."""
