"""A vocabulary of one's own: byte-level BPE learned from data by the `tokenizers` library, in the manner of Llama 3 or Llama 4.

The result is a folder with `tokenizer.json` and `tokenizer_config.json` that herd and transformers load alike. Plain tokens come first
and control tokens last, as in Meta's vocabularies, so that a model can be given more control tokens without moving any id.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herd.errors import FileProblem, UsageError, did_you_mean
from herd.files import atomic_write
from herd.records import dataclass
from herd.text.splits import LLAMA3_SPLIT, LLAMA4_SPLIT, Split, pre_tokenizer

if TYPE_CHECKING:
    from herd.text.tokenizer import Tokenizer

SIZE_MAX = 1 << 20
_BYTES = 256
_NAME_CHARACTERS_MAX = 100
_HELD_BACK = 1 << 20
"""Characters of the data that the new vocabulary is tried on afterwards."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a family's vocabularies cut text, which control tokens they have, and how conversations are written with them."""

    split: Split
    controls: tuple[str, ...]
    template: str


def _template(header: str, header_end: str, end: str, content: str) -> str:
    frame = f"{header}{{{{ role }}}}{header_end}{{{{ '\\n\\n' }}}}"
    return (
        "{{ bos_token }}{% for message in messages %}{% set role = message['role'] %}"
        f"{frame}{content}{end}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{% set role = 'assistant' %}}{frame}{{% endif %}}"
    )


_WITH_PICTURES = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
)
MANNERS = {
    "llama3": Manner(
        LLAMA3_SPLIT,
        (
            *("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|start_header_id|>", "<|end_header_id|>"),
            *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
        ),
        _template("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "{{ message['content'] | trim }}"),
    ),
    "llama4": Manner(
        LLAMA4_SPLIT,
        (
            *("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad|>", "<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>"),
            *("<|python_start|>", "<|python_end|>", "<|image_start|>", "<|image_end|>", "<|image|>", "<|patch|>"),
            *("<|tile_x_separator|>", "<|tile_y_separator|>"),
        ),
        _template("<|header_start|>", "<|header_end|>", "<|eot|>", _WITH_PICTURES),
    ),
}


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of it. bytes_per_token: on the beginning of the data it was trained on."""

    folder: Path
    size: int
    num_merges: int
    num_controls: int
    num_characters: int
    bytes_per_token: float


def train_tokenizer(
    texts: Iterable[str], size: int, folder: Path, *, manner: str = "llama3", more: Iterable[str] = (), replace: bool = False
) -> Trained:
    """Learns a vocabulary of `size` tokens and writes it into `folder`.

    more: control tokens besides the manner's own, such as `<|reserved_0|>`. replace: over a vocabulary that is there already.
    `UsageError` for a size that cannot be, or that the data is too small for.
    """
    found = _manner(manner)
    controls = _controls(found, tuple(more))
    _check(size, len(controls), folder, replace=replace)
    seen = _Seen()
    library = _learned(seen.all(texts), size - len(controls), found)
    plain = library.get_vocab_size(with_added_tokens=False)
    if not seen.num_characters:
        raise FileProblem("the data has no text to learn a vocabulary from.")
    if plain + len(controls) < size:
        raise UsageError(
            f"the data gives {plain + len(controls):,} tokens at most, and {size:,} are asked for: no two pieces follow one another twice"
            " any more. Give more data, or a smaller --size."
        )
    _finish(library, controls)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "bos_token": controls[0],
        "eos_token": controls[1],
        "pad_token": controls[2],
        "chat_template": found.template,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for name, text in (("tokenizer.json", library.to_str(pretty=True)), ("tokenizer_config.json", json.dumps(config, indent=2))):
        with atomic_write(folder / name) as file:
            file.write(text.encode("utf-8"))
    tried = _loaded(folder, config).encode(seen.beginning, bos=False)
    return Trained(folder, size, plain - _BYTES, len(controls), seen.num_characters, len(seen.beginning.encode()) / max(len(tried), 1))


def _manner(name: str) -> Manner:
    if name not in MANNERS:
        raise UsageError(f"there is no manner {name!r:.60} of vocabularies{did_you_mean(name, MANNERS)} Known are {', '.join(MANNERS)}.")
    return MANNERS[name]


def _controls(manner: Manner, more: tuple[str, ...]) -> tuple[str, ...]:
    controls = (*manner.controls, *more)
    for name in more:
        if not 1 < len(name) <= _NAME_CHARACTERS_MAX or name.strip() != name or not name.isprintable():
            raise UsageError(f"a control token is called {name!r:.120}; expected a short printable name such as <|reserved_0|>.")
        if controls.count(name) > 1:
            raise UsageError(f"the control token {name} is given twice; the manner has {', '.join(manner.controls)} already.")
    return controls


def _check(size: int, num_controls: int, folder: Path, *, replace: bool) -> None:
    least = _BYTES + num_controls + 1
    if not least <= size <= SIZE_MAX:
        raise UsageError(f"the size is {size:,}; expected {least:,} (256 bytes, {num_controls} control tokens, a merge) to {SIZE_MAX:,}.")
    if (folder / "tokenizer.json").exists() and not replace:
        raise UsageError(f"{folder} has a vocabulary already. Choose another folder, or replace it (--force).")


class _Seen:
    """Counts the texts that go by, and keeps their beginning."""

    def __init__(self) -> None:
        self.num_characters = 0
        self.beginning = ""

    def all(self, texts: Iterable[str]) -> Iterator[str]:
        for text in texts:
            if self.num_characters < _HELD_BACK:
                self.beginning += text[: _HELD_BACK - self.num_characters]
            self.num_characters += len(text)
            yield text


def _learned(texts: Iterator[str], size: int, manner: Manner) -> Any:
    """A `tokenizers` object with `size` plain tokens, or fewer if the data has no more."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE(ignore_merges=manner.split.ignore_merges))
    library.pre_tokenizer = pre_tokenizer(manner.split)
    library.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(texts, trainer)
    return library


def _finish(library: Any, controls: tuple[str, ...]) -> None:
    """Control tokens at the end, and the first of them in front of every text."""
    from tokenizers import AddedToken, processors

    library.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in controls])
    begin = controls[0]
    library.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1", special_tokens=[(begin, library.token_to_id(begin))]
    )


def _loaded(folder: Path, config: dict[str, Any]) -> Tokenizer:
    """The vocabulary as a model's files would bring it: what was written is read back before success is reported."""
    from herd.text.tokenizer import load_tokenizer

    return load_tokenizer(kind="tokenizer.json", path=folder / "tokenizer.json", config=config)
