"""What an operator sees: metrics, logs, traces, the status page."""
