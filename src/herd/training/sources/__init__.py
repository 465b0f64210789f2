"""Where the sequences of pretraining come from."""
