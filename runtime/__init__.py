"""The lowest floor: printing and the terminal, bad input, leaving, threads, memory, precision."""
