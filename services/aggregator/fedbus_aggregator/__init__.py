"""The aggregator: verifies updates, folds them chunk by chunk, publishes the next model."""
