"""Applications on a device, each a page long: they ask the daemon that runs there (`edge-agent run`)."""
