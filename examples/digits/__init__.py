"""The demo model: handwritten digits drawn onto a sensor frame, and the network that reads them."""
