"""Strategies, clusters of workers, and what the workers decide together."""
