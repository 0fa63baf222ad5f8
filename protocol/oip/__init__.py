"""Open Inference Protocol v2 for both daemons: codec, HTTP app and server, gRPC server, over an abstract service."""
