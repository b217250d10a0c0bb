"""Sentiment from words alone, as CMU-MOSI rates it, by an encoder small enough for the device."""

from pathlib import Path

NAME = "mosi-text"

WEIGHTS = Path(__file__).parent / "weights"
"""A run folder: what the recipe gave, with its model card."""
