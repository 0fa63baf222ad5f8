"""From a model to a plan and a bundle: build, measure, choose, write."""
