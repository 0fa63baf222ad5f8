"""What is wrong with this device, and what to do about it: checks that each end in one verdict with a remedy."""
