"""Which placements can be best: exact minimum cuts, envelopes and budgets. Pure."""
