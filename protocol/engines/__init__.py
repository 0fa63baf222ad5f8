"""Inference engines, shared by gateway tails and device heads. Each heavy library has one module that imports it."""
