"""From an image file to a net's input: decoding, Torch's resize, colour, compiled kernels."""
