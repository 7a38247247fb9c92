"""Model files of this and other programs, read safely; nets are plain configurations here."""
