"""Data, models, losses, metrics and recipes: what runs on the workstation."""
