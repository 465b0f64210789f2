"""`/v1/moderations`: a Llama Guard's verdict, by OpenAI's names of categories and by the guard's own codes.

A guard says which of its categories a message violates, and how sure it is that it is unsafe at all. So a category's score is that
probability where the guard named the category, and 0 where it did not. Categories that OpenAI has no name for are in `codes` only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Discriminator, Field, Tag
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from herd.errors import UsageError
from herd.providers.base import Service
from herd.server.chosen_model import only_model
from herd.server.house import caller, house_of
from herd.server.openai.chat import fetch_rules
from herd.server.openai.fields import Name
from herd.server.openai.messages import ImagePart, TextPart, with_pictures
from herd.server.openai.shapes import Moderations
from herd.server.openai.wire import new_id
from herd.server.operations import operation
from herd.server.reading import Body, read_body
from herd.server.replies import reply
from herd.text.messages import Image, Message, Role, Text

if TYPE_CHECKING:
    from herd.text.formats.guard import Verdict

MAX_TEXTS = 256
AT_ONCE = 16
"""Verdicts that are waited for at the same time."""

CATEGORIES = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent"),
    *("self-harm", "self-harm/intent", "self-harm/instructions", "sexual", "sexual/minors", "violence", "violence/graphic"),
)
BY_NAME: Mapping[str, tuple[str, ...]] = {
    "Violence and Hate": ("violence", "hate"),
    "Criminal Planning": ("illicit",),
    "Guns and Illegal Weapons": ("illicit", "illicit/violent"),
    "Regulated or Controlled Substances": ("illicit",),
    "Violent Crimes": ("violence", "illicit", "illicit/violent"),
    "Non-Violent Crimes": ("illicit",),
    "Sex Crimes": ("sexual", "illicit"),
    "Child Exploitation": ("sexual", "sexual/minors"),
    "Defamation": ("harassment",),
    "Indiscriminate Weapons": ("illicit", "illicit/violent"),
    "Hate": ("hate",),
    "Self-Harm": ("self-harm",),
    "Sexual Content": ("sexual",),
    "Specialized Advice": (),
    "Privacy": (),
    "Intellectual Property": (),
    "Elections": (),
    "Code Interpreter Abuse": (),
}
"""What OpenAI calls each category of a guard. By name, because codes mean different things in different guards."""


def _shape(value: object) -> str:
    if not isinstance(value, list):
        return "text"
    return "parts" if value and isinstance(value[0], dict) else "texts"


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Input = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS), Tag("texts")]
    | Annotated[list[Part], Field(min_length=1, max_length=MAX_TEXTS), Tag("parts")],
    Discriminator(_shape),
]


class ModerationBody(Body):
    """What is to be judged."""

    model: Name | None = Field(None, description="A Llama Guard. Without one, and with OpenAI's names, the guard that is loaded.")
    input: Input = Field(description="A text, texts that are judged one by one, or texts and pictures that are judged together.")


@operation("Judge texts", body=ModerationBody, reply=Moderations, generates=True)
async def create_moderation(request: Request) -> Response:
    """A Llama Guard reads each text as a user's message and says whether it is safe."""
    body = await read_body(request, ModerationBody)
    house = house_of(request)
    wanted = None if body.model is None or body.model.startswith(("omni-moderation-", "text-moderation-")) else body.model
    name = only_model(request, wanted, lambda facts: facts.is_guard, "a Llama Guard")
    messages = await with_pictures(_messages(body), fetch_rules(house.settings))
    async with house.use(request, name) as service:
        if not service.facts.is_guard:
            raise UsageError(f"{name} is no guard, so it gives no verdicts. Name a Llama Guard as model.", param="model")
        verdicts: list[Verdict] = []
        for start in range(0, len(messages), AT_ONCE):
            asked = [_verdict(service, message, request) for message in messages[start : start + AT_ONCE]]
            verdicts.extend(await asyncio.gather(*asked))
    results = [result(verdict, _kinds(message)) for verdict, message in zip(verdicts, messages, strict=True)]
    return reply({"id": new_id("modr"), "model": name, "results": results})


def _messages(body: ModerationBody) -> list[Message]:
    given = body.input
    if isinstance(given, str):
        return [Message(Role.USER, given)]
    texts = [each for each in given if isinstance(each, str)]
    if texts:
        return [Message(Role.USER, text) for text in texts]
    parts = tuple(Image(each.url) if isinstance(each, ImagePart) else Text(each.text) for each in given if not isinstance(each, str))
    return [Message(Role.USER, parts)]


async def _verdict(service: Service, message: Message, request: Request) -> Verdict:
    try:
        return await service.moderate([message], caller(request))
    except UsageError as problem:
        problem.param = problem.param or "input"
        raise


def _kinds(message: Message) -> Sequence[str]:
    return ["text", "image"] if message.images else ["text"]


def result(verdict: Verdict, kinds: Sequence[str]) -> dict[str, Any]:
    """A verdict in OpenAI's words. kinds: what was judged."""
    score = 1.0 if verdict.unsafe_probability is None else float(verdict.unsafe_probability)
    flagged = {name for category in verdict.categories for name in BY_NAME.get(category.name, ())}
    return {
        "flagged": not verdict.is_safe,
        "categories": {name: name in flagged for name in CATEGORIES},
        "category_scores": {name: score if name in flagged else 0.0 for name in CATEGORIES},
        "category_applied_input_types": {name: list(kinds) if name in flagged else [] for name in CATEGORIES},
        "codes": [{"code": category.code, "name": category.name} for category in verdict.categories],
        "unsafe_probability": verdict.unsafe_probability,
    }


ROUTES = (Route("/v1/moderations", create_moderation, methods=["POST"]),)
