"""K steps in one call, and which way of running them is fastest."""
