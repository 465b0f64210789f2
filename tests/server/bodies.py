"""The smallest body of each endpoint that is in order, for a server with the model `fake`."""

from __future__ import annotations

from typing import Any

TURN = [{"role": "user", "content": "Hi"}]
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "fake", "messages": TURN},
    "/v1/completions": {"model": "fake", "prompt": "Hi"},
    "/v1/embeddings": {"model": "fake", "input": "Hi"},
    "/v1/moderations": {"model": "fake", "input": "Hi"},
    "/tokenize": {"model": "fake", "prompt": "Hi"},
    "/detokenize": {"model": "fake", "tokens": [1, 2]},
    "/v1/responses": {"model": "fake", "input": "Hi"},
    "/v1/responses/input_tokens": {"model": "fake", "input": "Hi"},
    "/v1/messages": {"model": "fake", "messages": TURN, "max_tokens": 5},
    "/v1/messages/count_tokens": {"model": "fake", "messages": TURN},
    "/api/chat": {"model": "fake", "messages": TURN, "stream": False},
    "/api/generate": {"model": "fake", "prompt": "Hi", "stream": False},
    "/api/embed": {"model": "fake", "input": "Hi"},
    "/api/embeddings": {"model": "fake", "prompt": "Hi"},
    "/api/show": {"model": "fake"},
    "/v1/adapters": {"model": "fake", "name": "poems", "folder": "poems"},
    "/v1/fine_tuning/jobs": {"model": "fake", "training_file": "file-0", "method": {"type": "supervised"}},
    "/v1/batches": {"input_file_id": "file-0", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
}
