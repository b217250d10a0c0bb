"""Results to other programs and to files. One class each, behind one protocol."""
