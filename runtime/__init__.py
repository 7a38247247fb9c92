"""The lowest floor: the terminal, errors of input, process exit, threads, memory, precision."""
