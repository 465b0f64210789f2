"""Samples to token ids, with what is to be learned of them.

    learn      what carries loss: "answers" (what the assistant says, and the token that ends it), "last" (of the last answer only), "all"
               (everything, as in pretraining)

A model without a chat format can learn plain text, and prompts with completions: the completion carries loss, and the text's end.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from herd.data.reading import Place
from herd.data.samples import Chat, Judged, Passage, Preference, Task, Tools
from herd.errors import UsageError
from herd.records import dataclass
from herd.text.formats.answers import Answered, answered
from herd.text.formats.parts import ChatFormat, Tiles
from herd.text.messages import Image, Message, Role
from herd.text.tokenizer import Tokenizer

LEARN = ("answers", "last", "all")
_ANYTHING = Message(Role.ASSISTANT, "a")


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture and the positions [begin, end) of the ids that stand for it."""

    begin: int
    end: int
    image: Image


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids to learn from.

    weights      weights[t]: how much the prediction of tokens[t], from what stands before it, counts; weights[0] is 0
    formatting   positions that carry loss and hold a control token: no words, but how answers are written (their end, above all)
    place        where the record stands
    """

    tokens: tuple[int, ...]
    weights: tuple[float, ...]
    formatting: tuple[int, ...] = ()
    pictures: tuple[Shown, ...] = ()
    place: Place | None = None

    @property
    def num_learned(self) -> int:
        """Tokens that carry loss."""
        return len(self.weights) - self.weights.count(0)


@dataclass(frozen=True, slots=True)
class Tokenising:
    """How one model's samples become ids. tiles: how it cuts pictures; date: as of `ChatFormat.render`."""

    tokenizer: Tokenizer
    chat_format: ChatFormat | None
    learn: str = "answers"
    tiles: Tiles | None = None
    date: str | None = None

    def __post_init__(self) -> None:
        if self.learn not in LEARN:
            raise UsageError(f"learn is {self.learn!r:.60}; expected one of {', '.join(LEARN)}.")

    def examples(self, sample: Chat | Passage) -> tuple[Example, ...]:
        """One example, or one for each answer in formats that write the past otherwise than the present; at most those that carry loss.

        `UsageError` for what the chat format refuses.
        """
        if isinstance(sample, Passage):
            return (self._passage(sample),)
        if self.chat_format is None:
            return (self._completed(sample.place, sample.messages, 1, sample.is_plain),)
        found = self._answered(sample.messages, sample.tools)
        weights = sample.weights or tuple(1.0 for _ in sample.messages)
        if self.learn == "last":
            found = found[-1:]
            weights = (*(0.0 for _ in sample.messages[1:]), weights[-1])
        images = [image for message in sample.messages for image in message.images]
        made = (self._example(each, weights, images, sample.place) for each in found)
        return tuple(example for example in made if example.num_learned)

    def pair(self, sample: Preference) -> tuple[Example, Example]:
        """The chosen and the rejected answer, each behind the prompt."""
        chosen, rejected = (self._reply(sample, answer) for answer in (sample.chosen, sample.rejected))
        return chosen, rejected

    def judged(self, sample: Judged) -> Example:
        """The answer behind its prompt."""
        return self._reply(sample, sample.answer)

    def prompt(self, sample: Task) -> Example:
        """The prompt alone, up to where the answer begins; nothing of it carries loss."""
        if self.chat_format is None:
            ids = self.tokenizer.encode(self._plain_text(sample.place, sample.messages, sample.is_plain))
            return Example(tuple(ids), (0.0,) * len(ids), place=sample.place)
        render = self.chat_format.render
        ids = render(sample.messages, tools=sample.tools, date=self.date, tiles=self.tiles)
        # Where its pictures stand is what an answer to it would say.
        images = [image for message in sample.messages for image in message.images]
        pictures: tuple[Shown, ...] = ()
        if images:
            whole = self._answered((*sample.messages, _ANYTHING), sample.tools)[-1]
            assert whole.answers[-1].begin == len(ids), "an answer begins where its prompt ends"
            pictures = tuple(Shown(*place, image) for place, image in zip(whole.pictures, images, strict=True))
        return Example(tuple(ids), (0.0,) * len(ids), (), pictures, sample.place)

    def _reply(self, sample: Preference | Judged, answer: Sequence[Message]) -> Example:
        messages = (*sample.prompt, *answer)
        if self.chat_format is None:
            return self._completed(sample.place, messages, len(sample.prompt), sample.is_plain)
        found = self._answered(messages, sample.tools)
        if len(found) > 1 and len(answer) > 1:
            raise UsageError(
                f"{sample.place}: the answer has several turns, and the chat format {self.chat_format.name} writes earlier turns"
                " otherwise than the last one, so they cannot be judged as one text."
            )
        weights = tuple(float(at >= len(sample.prompt)) for at in range(len(messages)))
        images = [image for message in messages for image in message.images]
        return self._example(found[-1], weights, images, sample.place, is_reply=True)

    def _answered(self, messages: Sequence[Message], tools: Tools) -> tuple[Answered, ...]:
        assert self.chat_format is not None
        return answered(self.chat_format, messages, tools=tools, date=self.date, tiles=self.tiles)

    def _example(
        self, found: Answered, weights: Sequence[float], images: Sequence[Image], place: Place, *, is_reply: bool = False
    ) -> Example:
        learned = [0.0] * len(found.ids)
        if self.learn == "all" and not is_reply:
            learned = [1.0] * len(found.ids)
            for begin, end in found.pictures:
                learned[begin:end] = [0.0] * (end - begin)
        else:
            for answer in found.answers:
                learned[answer.begin : answer.end] = [weights[answer.message]] * (answer.end - answer.begin)
        learned[0] = 0.0
        is_special = self.tokenizer.is_special
        spans = chain.from_iterable(range(answer.begin, answer.end) for answer in found.answers)
        formatting = tuple(at for at in spans if learned[at] and is_special(found.ids[at]))
        pictures = tuple(Shown(*place, image) for place, image in zip(found.pictures, images, strict=False))
        return Example(found.ids, tuple(learned), formatting, pictures, place)

    def _passage(self, sample: Passage) -> Example:
        ids = [*self.tokenizer.encode(sample.text), *self._end(sample.place)]
        return Example(tuple(ids), (0.0, *(1.0 for _ in ids[1:])), place=sample.place)

    def _completed(self, place: Place, messages: Sequence[Message], num_asked: int, is_plain: bool) -> Example:
        """A prompt and its completion as they are, one behind the other, and the end of the text."""
        asked = self.tokenizer.encode(self._plain_text(place, messages[:num_asked], is_plain))
        answer = "".join(message.text for message in messages[num_asked:])
        whole = self.tokenizer.encode(messages[0].text + answer)
        if whole[: len(asked)] != asked:  # a token would lie over the border
            whole = asked + self.tokenizer.encode_inside(answer)
        ids = [*whole, *self._end(place)]
        carries = 1 if self.learn == "all" else max(len(asked), 1)
        learned = tuple(float(at >= carries) for at in range(len(ids)))
        formatting = tuple(at for at in range(carries, len(ids)) if self.tokenizer.is_special(ids[at]))
        return Example(tuple(ids), learned, formatting, place=place)

    def _plain_text(self, place: Place, messages: Sequence[Message], is_plain: bool) -> str:
        if not is_plain or len(messages) != 1:
            raise UsageError(
                f"{place}: is a conversation, and the model has no chat format. Choose one to teach it (--format chatml, llama3, ...)."
            )
        return messages[0].text

    def _end(self, place: Place) -> tuple[int, ...]:
        """The id that ends a text: the first of the ends that the vocabulary declares."""
        ends = self.tokenizer.eos_ids or tuple(sorted(self.tokenizer.stop_ids))
        if not ends:
            raise UsageError(f"{place}: the model's vocabulary has no token that ends a text, so a model could not learn to stop.")
        return ends[:1]
