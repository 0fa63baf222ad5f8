"""What a gateway serves: model folder, versions and their life cycle, lanes and their engines."""
