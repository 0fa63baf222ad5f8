"""Where requests come in and answers go out: ZeroMQ for agents, the Open Inference Protocol for everybody else."""
