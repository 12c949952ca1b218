"""One-bit and real-valued depth estimation on the same images."""
