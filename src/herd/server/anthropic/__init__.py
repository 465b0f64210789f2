"""Anthropic's API: messages in blocks, answers in blocks, events that open and close them."""
