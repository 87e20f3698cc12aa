"""The evaluator: scores every new model on held-out data, in a child that may import torch."""
