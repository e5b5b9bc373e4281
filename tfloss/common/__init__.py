"""What all packages share: the logger, files, unique names, nested differences."""
