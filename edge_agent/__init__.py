"""The device: heads, placement per request, fallback by cause, and the typed client that applications use."""
