"""How a graph becomes eight bits, and the search for the recipe that keeps its promise."""
