"""Recipes: from named data sets to the weights of a model."""
