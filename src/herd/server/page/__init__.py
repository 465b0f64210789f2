"""The built-in pages: `/` to try the models, `/plan` to see what a model takes. Plain files, no foreign script, no network."""
