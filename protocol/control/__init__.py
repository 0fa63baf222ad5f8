"""Pure rooms shared by agent and simulator: session, link, plan, and what each failure means. No clock or socket."""
