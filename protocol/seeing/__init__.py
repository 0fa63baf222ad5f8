"""What both daemons observe themselves with: windows, Prometheus text, the log, the machine, the status page."""
