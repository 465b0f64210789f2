"""Ollama's API: a JSON object a line, times in nanoseconds, and a table of options."""
