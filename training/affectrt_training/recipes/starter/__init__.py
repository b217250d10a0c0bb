"""The starter model: its recipe, stage by stage, and its weights. Importing this loads nothing heavy."""

STAGES = ("text", "voice", "face", "fusion", "causal")
"""The recipe's stages in order."""

FUSIONS = STAGES[3:]
"""Those that read the three encoders: of windows and of ticks."""
