"""What fits, how fast it is, what it costs, what is allowed: sums over the family and its configs, and dated data.

Nothing here loads a weight, opens a socket or knows a backend. Figures come from three places, and every answer says which:
the model's own list of weights and caches (`models/sizes`), data files with a source and a date for each value (`data/*.toml`), and
assumptions that are named (`speed.assumed`, `memory.ASSUMED`, `training.ASSUMED`).
"""
