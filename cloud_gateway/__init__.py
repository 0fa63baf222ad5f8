"""The gateway: tails with dynamic batching, deadlines, duplicates and a clean end."""
