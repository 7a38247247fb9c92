"""The loop that trains and tests any model, its metrics, and the lines that it prints."""
