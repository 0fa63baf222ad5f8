"""What happens to the tensors between head and tail: codes, halves, rungs, codings."""
