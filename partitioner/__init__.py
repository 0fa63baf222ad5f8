"""Offline: an ONNX graph becomes a bundle of proven placements. Nothing here runs on a device or at a gateway."""
