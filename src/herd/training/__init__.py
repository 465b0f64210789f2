"""Weights change: losses, optimisers, recipes, and what runs them."""
