"""What the benchmarks share: the ground that rivals are compared on, the rivals, and how figures are printed."""
