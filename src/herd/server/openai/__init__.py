"""OpenAI's API over HTTP: each file has its bodies, its handlers and its `ROUTES`."""
