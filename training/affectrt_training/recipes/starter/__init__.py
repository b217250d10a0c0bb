"""The starter model: its recipe, stage by stage, and its weights. Importing this loads nothing heavy."""

STAGES = ("text", "voice", "face", "fusion")
"""The recipe's stages in order; the fusion needs the three encoders before it."""
