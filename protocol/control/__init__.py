"""Pure rooms shared by agent and simulator: session, link estimate, planning. No clock, socket, thread or chance."""
