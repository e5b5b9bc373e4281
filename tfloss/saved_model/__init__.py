"""Inference SavedModels: `export`, and the checks that an export must pass."""
