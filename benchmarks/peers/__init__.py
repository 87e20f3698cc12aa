"""fedbus beside Flower and NVIDIA FLARE on one machine: `make bench-peers`."""
