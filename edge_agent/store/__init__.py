"""Requests that outlive the process: stored on disk, sent when nobody is in the way, answered late but once."""
