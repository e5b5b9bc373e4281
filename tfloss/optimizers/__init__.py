"""What changes an update rule."""
