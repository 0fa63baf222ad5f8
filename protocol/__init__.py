"""The ground floor: what device and gateway must agree on. It imports none of the three rooms above it."""

__version__ = "0.1.0"
