"""The same numbers, however many replicas and workers share the work."""
