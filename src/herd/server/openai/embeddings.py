"""`/v1/embeddings`: texts become vectors of length 1."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from herd.errors import UsageError
from herd.server.house import caller, house_of
from herd.server.openai.completions import Prompt, separate
from herd.server.openai.fields import KEY_SAYS_WHO, Name
from herd.server.openai.shapes import Embeddings
from herd.server.operations import operation
from herd.server.reading import Body, read_body
from herd.server.replies import reply
from herd.server.settings import LIMITS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class EmbeddingBody(Body):
    """What is to be embedded."""

    HARMLESS: ClassVar[Mapping[str, str]] = {"user": KEY_SAYS_WHO}

    model: Name = Field(description="The model that reads, as `/v1/models` lists it.")
    input: Prompt = Field(description="A text, texts, a list of token ids, or lists of token ids.")
    encoding_format: Literal["float", "base64"] | None = Field(None, description="Numbers, or 32-bit floats (little-endian) in base64.")
    dimensions: int | None = Field(
        None, ge=1, le=LIMITS.tokens, description="Only the vector's own length: Llama models were not trained to have theirs cut."
    )


@operation("Embed texts", body=EmbeddingBody, reply=Embeddings, generates=True)
async def create_embeddings(request: Request) -> Response:
    """Each input becomes a vector of length 1, as wide as the model."""
    body = await read_body(request, EmbeddingBody)
    inputs = separate(body.input)
    for index, each in enumerate(inputs):
        if not each:
            raise UsageError(f"input {index} is empty; there is nothing to embed.", param="input")
    async with house_of(request).use(request, body.model) as service:
        vocab_size = service.facts.vocab_size
        if any(not isinstance(each, str) and max(each) >= vocab_size for each in inputs):
            raise UsageError(f"input has a token outside the model's vocabulary of {vocab_size}.", param="input")
        try:
            found = await service.embed(inputs, caller(request))
        except UsageError as problem:
            problem.param = problem.param or "input"
            raise
    width = len(found[0].values)
    if body.dimensions not in (None, width):
        raise UsageError(
            f"dimensions is {body.dimensions}; vectors of {body.model} have {width}, and were not trained to be cut.", param="dimensions"
        )
    vectors = [_written(each.values, body.encoding_format) for each in found]
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    tokens = sum(each.num_tokens for each in found)
    return reply({"object": "list", "model": body.model, "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})


def _written(values: NDArray[np.float32], encoding: str | None) -> Any:
    return base64.b64encode(values.astype("<f4").tobytes()).decode("ascii") if encoding == "base64" else values.tolist()


ROUTES = (Route("/v1/embeddings", create_embeddings, methods=["POST"]),)
