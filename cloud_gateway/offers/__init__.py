"""Bundles over the air: which bundles devices may fetch from this gateway, and how their files get onto the wire."""
