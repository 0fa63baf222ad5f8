"""Applications on the device: the Open Inference Protocol over the agent."""
