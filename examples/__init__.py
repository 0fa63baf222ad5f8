"""Worked examples: each folder holds one demo model, its data and how both were made."""
