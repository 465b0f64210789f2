"""The model that learns: the functions of `models/` under gradients, and what makes them fast."""
