"""SIMULATION of cuda-python over `simulated_gpu`: the few calls that we make, with the names of cuda-bindings 13."""
