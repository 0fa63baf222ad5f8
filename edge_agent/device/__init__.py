"""The machine that the agent lives on: what its board says about itself, and what may run a head there."""
