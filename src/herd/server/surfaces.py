"""All routes of the server, in the order in which the description lists them. Each surface's module has its own `ROUTES`."""

from __future__ import annotations

from starlette.routing import Route


def surfaces() -> list[Route]:
    """Every route; modules are imported when a server is built."""
    from herd.server import adapters, docs_page, health
    from herd.server.anthropic import messages
    from herd.server.ollama import embedding, generating
    from herd.server.ollama import models as ollama_models
    from herd.server.openai import batches, chat, completions, embeddings, files, fine_tuning, models, moderations, responses, tokens
    from herd.server.page import routes

    openai = [
        *chat.ROUTES,
        *completions.ROUTES,
        *embeddings.ROUTES,
        *moderations.ROUTES,
        *models.ROUTES,
        *tokens.ROUTES,
        *responses.ROUTES,
        *files.ROUTES,
        *batches.ROUTES,
        *fine_tuning.ROUTES,
    ]
    return [
        *openai,
        *messages.ROUTES,
        *generating.ROUTES,
        *embedding.ROUTES,
        *ollama_models.ROUTES,
        *adapters.ROUTES,
        *health.ROUTES,
        *docs_page.ROUTES,
        *routes.ROUTES,
    ]
