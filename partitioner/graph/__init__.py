"""The network itself: reading a model, its nouns, where it can be cut, and cutting it."""
