"""Which batch bound, instances and threads a model should have: measured here, played through the real scheduler."""
