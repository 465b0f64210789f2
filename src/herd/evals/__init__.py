"""How good a model is: three measures on top of `providers.base.Scorer`, whatever answers behind it.

perplexity  how well a text is predicted  ·  divergence  how far two models are apart  ·  accuracy  which choice is likeliest
"""
