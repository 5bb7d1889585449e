"""Noise to datasets of splats, on Ray actors that load the model."""
