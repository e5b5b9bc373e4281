"""`Trainer` and its parts."""
