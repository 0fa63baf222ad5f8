"""Bundles over the air: fetched in parts, verified, tried in a child process, switched to; confirmed or reverted."""
