"""Who may do what: keys, roles, limits, and a record of every administrative act."""
