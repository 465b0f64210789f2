"""What complete answers look like, for the description of the API; answers are written without these models."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobShape(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprobShape]
    refusal: None = None


class FunctionCallShape(BaseModel):
    name: str
    arguments: str


class ToolCallShape(BaseModel):
    id: str
    type: Literal["function"]
    function: FunctionCallShape


class ChatMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: list[ToolCallShape] | None = None
    function_call: FunctionCallShape | None = None


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class UsageShape(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]
    completion_tokens_details: dict[str, int]


class ChatCompletion(BaseModel):
    """`seed` is the one that answers were drawn with."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    service_tier: Literal["default"]
    seed: int
    choices: list[ChatChoice]
    usage: UsageShape


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length", "content_filter"]


class Completion(BaseModel):
    """`seed` is the one that answers were drawn with."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    seed: int
    choices: list[CompletionChoice]
    usage: UsageShape


class EmbeddingShape(BaseModel):
    """`embedding` is a list of numbers, or, for encoding_format base64, little-endian 32-bit floats."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class PromptUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    object: Literal["list"]
    model: str
    data: list[EmbeddingShape]
    usage: PromptUsage


class LicenceShape(BaseModel):
    """The `licence` that a model is under, by its title; what whoever lets others use it shows; the line that copies carry."""

    licence: str
    badge: str | None
    notice: str | None


class ModelShape(BaseModel):
    """`limits`: what one request may ask of this model. `details`: known once the model is loaded. `licence`: null where the model's files
    do not say."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None
    root: str
    loaded: bool
    licence: LicenceShape | None
    limits: dict[str, int]
    details: dict[str, Any] | None


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelShape]


class GuardCategory(BaseModel):
    code: str
    name: str


class ModerationResult(BaseModel):
    """Categories by OpenAI's names. `codes`: by the guard's own. `unsafe_probability`: of the guard's first word."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[str]]
    codes: list[GuardCategory]
    unsafe_probability: float | None


class Moderations(BaseModel):
    id: str
    model: str
    results: list[ModerationResult]


class Tokens(BaseModel):
    """`tokens` are absent for a conversation, which is only counted; `token_strs` unless asked for."""

    count: int
    max_model_len: int
    tokens: list[int] | None = None
    token_strs: list[str] | None = None


class Detokenized(BaseModel):
    """The text, by the names that two kinds of clients look for."""

    prompt: str
    content: str = Field(description="As prompt.")
