"""The terminal: one small file per command group. Everything else is imported when a command runs, so that help is instant."""
