"""Samples, and whether answers hold on them."""
