"""Seconds on this machine and on others: profiles, anchors and the kit for a device."""
