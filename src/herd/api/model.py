"""What `herd.load` gives: a model that can be asked, and what it answers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from herd.api import asking, facts
from herd.api.output import Output, collect, no_tokenizer
from herd.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from herd.api.classification import Classification
    from herd.api.research import Change, Trace
    from herd.api.sessions import Session
    from herd.api.words import Words
    from herd.backends.base import MemoryUse, Placed
    from herd.checkpoints.checkpoint import Checkpoint, Fact
    from herd.engine.engine import Engine
    from herd.family.finding import Found
    from herd.models.architecture import Config
    from herd.models.weights import Update
    from herd.providers.base import ChatRequest, Event
    from herd.providers.local import LocalProvider
    from herd.sampling.params import SamplingParams
    from herd.text.formats import ChatFormat
    from herd.text.formats.guard import Category, Verdict
    from herd.text.messages import Message
    from herd.text.tokenizer import Tokenizer
    from herd.text.tools import BuiltIn, Tool


@final
class Model:
    """A loaded model: logits, answers and chats. Close it, or use it in a `with` block, to give its memory back."""

    def __init__(self, found: Found, checkpoint: Checkpoint, engine: Engine, words: Words, adapter: Path | None = None) -> None:
        from herd.api.pictures import Eyes
        from herd.providers.local import LocalProvider

        self._found = found
        self._checkpoint = checkpoint
        self._engine = engine
        self._words = words
        self._adapter = adapter
        self._eyes = Eyes(found.name, checkpoint.config)
        self._provider = LocalProvider(
            engine,
            words.tokenizer,
            None,
            facts.model_facts(found, checkpoint, engine),
            find_formats=lambda: words.formats,
            eyes=self._eyes,
            read_adapter=self._read_adapter,
        )

    @property
    def name(self) -> str:
        """The release's name, or that of the file or folder."""
        return self._found.name

    @property
    def path(self) -> Path:
        """The file or folder it was loaded from."""
        return self._found.path

    @property
    def config(self) -> Config:
        """The facts of its architecture."""
        config: Config = self._checkpoint.config
        return config

    @property
    def facts(self) -> Mapping[str, Fact]:
        """What its files say about it, and where they say it."""
        return self._checkpoint.facts

    @property
    def checkpoint(self) -> Checkpoint:
        """The opened files."""
        return self._checkpoint

    @property
    def tokenizer(self) -> Tokenizer:
        """Words to tokens and back. `FileProblem` if the model came without one."""
        if self._words.tokenizer is None:
            raise no_tokenizer(self.name)
        return self._words.tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether the model came with a tokenizer; without one it has token ids and no texts."""
        return self._words.tokenizer is not None

    @cached_property
    def chat_format(self) -> ChatFormat:
        """How this model reads conversations: `render(messages, tools=...)` gives token ids, `parse(ids)` an answer's message."""
        self._refuse_classifier()
        found = self._words.chat_format
        if found is None:
            raise UsageError(
                f"{self.name} has no chat format: it is a base model, or its files do not say how it reads conversations. Continue a "
                'text with model.generate, or name its format: herd.load(..., chat_format="llama3.1").'
            )
        return replace(found, tiles=self._eyes.tiles) if self._eyes.can_see else found

    @property
    def provider(self) -> LocalProvider:
        """The same model as a `Provider` (chats, completions) and a `Scorer` (measures)."""
        return self._provider

    @property
    def engine(self) -> Engine:
        """The step loop, for who drives it by hand."""
        return self._engine

    @property
    def fingerprint(self) -> str:
        """Everything that may change bits: backend, version, instruction set, number formats."""
        return self._engine.backend.fingerprint

    def logits(self, tokens: Sequence[int], images: Sequence[object] = ()) -> NDArray[np.float32]:
        """Token ids [T] -> logits_TV, float32: the whole model's output at every position.

        images: PIL images (or bytes of image files, or data URLs), one for each picture that the ids have tokens for.
        """
        import numpy as np

        self._refuse_classifier()
        ids = asking.token_ids(tokens, "tokens")
        rows = list(self._engine.score(ids, pictures=self._placed(ids, images)))
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    @property
    def value_names(self) -> tuple[str, ...]:
        """Names of all values on the way from tokens to logits that `trace` reads and `patch` replaces, in order."""
        return self._engine.value_names

    def trace(self, prompt: str | Sequence[int], taps: Iterable[str] = (), images: Sequence[object] = ()) -> Trace:
        """One forward of a text or token ids, with the values that the patterns in `taps` name (`layers.*.out`) read.

        `UsageError` for a name that no value has. Other requests of this model wait meanwhile.
        """
        return self.patch(prompt, {}, taps, images)

    def patch(
        self, prompt: str | Sequence[int], changes: Mapping[str, Change], taps: Iterable[str] = (), images: Sequence[object] = ()
    ) -> Trace:
        """As `trace`, with values replaced: by a number, by an array [T, ...], or by what a function makes of (rows, their
        positions), called for a few tokens at a time. A softmax (`....weights`) is [N, T, T]."""
        from herd.api.research import run

        self._refuse_classifier()
        ids = self._prompt_ids(prompt)
        return run(self._engine, ids, taps, changes, self._placed(ids, images))

    def lens(self, prompt: str | Sequence[int], layers: Iterable[int] | None = None) -> dict[int, NDArray[np.float32]]:
        """Logits [T, V] as if the model ended after each of `layers` (None: all): the logit lens of nostalgebraist (2020)."""
        from herd.api.research import lens

        self._refuse_classifier()
        return lens(self._engine, self.name, self._prompt_ids(prompt), layers, self.config.num_layers)

    def classify(self, text: str, *, temperature: float = 1.0) -> Classification:
        """What a classifier such as Prompt Guard makes of a text: its likeliest label, and the probability of each.

        A text longer than the context is cut into pieces and counts as its most suspicious one. `UsageError` for a model that
        is no classifier.
        """
        from herd.api.classification import classify

        labels = getattr(self.config, "labels", None)
        if labels is None:
            raise UsageError(f"{self.name} is a language model, not a classifier; ask it with generate or chat.")
        context = self.config.context_length
        return classify(self._engine, self.tokenizer, labels, text, context_length=context, temperature=temperature)

    def embed(self, texts: str | Iterable[str]) -> NDArray[np.float32]:
        """Texts -> [texts, D], float32: the mean over each text's tokens of the hidden states after the last norm, of length 1."""
        from herd.api.research import embed

        self._refuse_classifier()
        return embed(self._engine, [self.tokenizer.encode(text) for text in asking.texts(texts)])

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the LoRA adapters that were added."""
        return self._engine.adapters

    def add_adapter(self, name: str, path: str | os.PathLike[str]) -> None:
        """Lets answers come from a LoRA adapter (a folder in PEFT's layout) that is chosen by name: `model.generate(..., adapter=name)`.

        Several adapters, and none, run in one step; what is not adapted does not change by a bit. Errors as `load(adapter=...)`.
        """
        self._refuse_classifier()
        self._provider.add_adapter(name, os.fspath(path))

    def remove_adapter(self, name: str) -> None:
        """Answers that it gives are finished; new ones are refused. `UsageError` for one that is not there."""
        self._engine.remove_adapter(name)

    def _read_adapter(self, path: str) -> Mapping[str, Update]:
        from herd.checkpoints.adapter import open_adapter

        return open_adapter(Path(path), self._checkpoint.config).updates

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        stop: str | Iterable[str] = (),
        adapter: str | None = None,
        response_format: object = None,
        **sampling: Any,
    ) -> Output:
        """Continues a text or token ids.

        max_tokens None: to the end of the context. `stop` are texts that end the answer. `adapter`: the name of one that was added.
        `sampling` are the fields of
        `SamplingParams` (temperature, top_k, top_p, min_p, penalties, logit_bias, seed, logprobs); what is not given comes
        from the model's own recommendation. `temperature=0.0` always takes the likeliest token.

        response_format holds the answer to a language: a JSON schema (also as OpenAI's clients write it, or a pydantic model),
        `{"type": "json_object"}`, `{"type": "regex", "regex": "[0-9]+"}` or `{"type": "grammar", "grammar": "start: ..."}`.
        """
        self._refuse_classifier()
        ids = self._prompt_ids(prompt)
        request = asking.completion_request(self.sampling(sampling), ids, max_tokens, stop, adapter, response_format)
        return self.collect(ids, self._provider.complete(request))

    def chat(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        stop: str | Iterable[str] = (),
        date: str | None = None,
        tools: Iterable[Tool | BuiltIn | str | Mapping[str, Any]] = (),
        tool_choice: object = "auto",
        parallel_tool_calls: bool = True,
        response_format: object = None,
        format: str = "template",
        adapter: str | None = None,
        **sampling: Any,
    ) -> Iterator[Event]:
        """Answers a conversation with a stream of events: `text` pieces and tool calls, then `finished` (or `failed`).

        messages  dictionaries in OpenAI's shape; pictures as `data:` URLs or PIL images
        date      for formats that tell the model what day it is: a text, or "today"; None: the published fixed one
        tools     functions in OpenAI's shape, or names of built-in tools
        format    "template": as published with the model; "meta": as Meta's own code writes conversations
        tool_choice            "auto", "none", "required" (a call, of any tool), or {"type": "function", "function": {"name": ...}}
        parallel_tool_calls    False: one call at most

        Closing the iterator early stops the answer. The rest as in `generate`.
        """
        asked = self.chat_request(
            messages,
            max_tokens=max_tokens,
            stop=stop,
            date=date,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            response_format=response_format,
            format=format,
            adapter=adapter,
            **sampling,
        )
        return self._provider.chat(asked)

    def chat_request(self, messages: Iterable[Message | Mapping[str, Any]], **options: Any) -> ChatRequest:
        """What `chat` asks the provider when it is given the same."""
        self._refuse_classifier()
        own = {name: options.pop(name) for name in asking.CHAT_OPTIONS & options.keys()}
        return asking.chat_request(self.sampling(options), messages, **own)

    def chat_token_ids(self, request: ChatRequest) -> list[int]:
        """The prompt that a chat request becomes. `UsageError` if the model has no chat format."""
        return self._provider.prompt(request)[0]

    def infill(self, prefix: str, suffix: str, *, suffix_first: bool = False, max_tokens: int | None = None, **sampling: Any) -> Output:
        """What stands between two texts, by a model that was taught to fill in: some Code Llamas. suffix_first: show it the end
        before the beginning. The rest as in `generate`."""
        return asking.infill(self, prefix, suffix, suffix_first, max_tokens, self.sampling(sampling))

    def moderate(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        *,
        categories: Iterable[Category | Mapping[str, str] | str] | None = None,
    ) -> Verdict:
        """A guard's verdict on the last message of a conversation. categories: in place of the model's own: names, or objects with
        code, name and description. `UsageError` for a model that is no guard, and for an answer that is no verdict."""
        return asking.moderate(self, messages, categories)

    def sampling(self, given: Mapping[str, Any]) -> SamplingParams:
        """The model's recommended sampling with what was given put over it. `UsageError` for an unknown name."""
        return asking.sampling_params(self.recommended_sampling(), given)

    def recommended_sampling(self) -> Mapping[str, float]:
        """What the model's files recommend; else its release; else Meta's own values."""
        return facts.recommended_sampling(self._found, self._checkpoint)

    def save_session(
        self, path: str | os.PathLike[str], prompt: str | Sequence[int], *, messages: Iterable[Mapping[str, Any]] = ()
    ) -> Session:
        """Keeps a text, or token ids, and all that the model computed of them in a file; what is not in the cache yet is computed.

        `open_session` goes on from there with the same bits as if nothing had happened between. messages: the conversation that
        the ids are, for whoever opens it. `UsageError` for ids with pictures.
        """
        from herd.api.sessions import owner, save

        self._refuse_classifier()
        ids = self._prompt_ids(prompt)
        self._placed(ids, ())
        return save(Path(path), self._engine, owner(self.name, self._engine, self._checkpoint, self._adapter), ids, list(messages))

    def open_session(self, path: str | os.PathLike[str]) -> Session:
        """Brings a saved session back. Prompts that begin with its `token_ids` go on from there: `model.generate([*session.token_ids,
        *model.tokenizer.encode(" and then", bos=False)])`.

        `FileProblem` for a file that is damaged, `UsageError` for a session of another model, or one computed in another way.
        """
        from herd.api.sessions import owner, read

        self._refuse_classifier()
        return read(Path(path), self._engine, owner(self.name, self._engine, self._checkpoint, self._adapter))

    def memory(self) -> MemoryUse:
        """Bytes that are held, by what for."""
        return self._engine.memory()

    def close(self) -> None:
        """Gives memory and files back. Idempotent."""
        self._engine.close()
        self._checkpoint.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<herd.Model {self.name} on {self._engine.backend.name}>"

    def _refuse_classifier(self) -> None:
        """`UsageError` for a model that reads whole texts and has no next token."""
        if getattr(self.config, "labels", None) is not None:
            raise UsageError(f"{self.name} is a classifier of whole texts: it has no next token. Use model.classify(text).")

    def _placed(self, tokens: Sequence[int], images: Sequence[object]) -> tuple[Placed, ...]:
        """Pictures and where they go; also finds picture tokens without a picture."""
        return self._eyes.place(tokens, self._eyes.prepare(images))

    def _prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        return asking.token_ids(prompt, "prompt")

    def collect(self, prompt_token_ids: Sequence[int], events: Iterable[Event]) -> Output:
        """Reads an answer's events to their end. Raises what made it fail."""
        return collect(self.name, prompt_token_ids, events, has_text=self.has_tokenizer)
