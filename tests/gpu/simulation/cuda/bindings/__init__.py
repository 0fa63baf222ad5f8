"""SIMULATION of cuda-python over `simulated_gpu`: the few calls that we make, with the names of cuda-bindings 13."""

__version__ = "13.5.0"
