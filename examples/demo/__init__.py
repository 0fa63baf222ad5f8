"""The demo: one model, real processes, a link that gets worse and dies. `python -m examples.demo --help`."""
