"""The Flower app of the benchmark."""
