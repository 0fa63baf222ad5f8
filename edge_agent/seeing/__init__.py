"""What the owner of a device sees: the account, metrics, the log of what changes, the status page."""
