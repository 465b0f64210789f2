"""Models that begin from nothing, and the run that teaches them."""
