"""What one image goes through: decoding, Torch's resize, colour, compiled kernels."""
