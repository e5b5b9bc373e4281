"""One update: forward pass, backward pass, application."""
