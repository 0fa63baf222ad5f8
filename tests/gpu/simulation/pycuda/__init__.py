"""SIMULATION of pycuda over `simulated_gpu`: the few calls that we make, with the names of pycuda 2026.1."""
