"""One file a recipe: what a step learns from, and its loss."""
