"""--session: where a conversation or a text goes on, and where it is kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from herd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from herd.api import Model, Output

_SESSION = click.option(
    "--session",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Go on where FILE ends, if it is there; keep in it what was said and computed.",
)
_LEAVE = click.option("--leave-session", is_flag=True, help="With --session: FILE stays as it is.")


def session_options(function: Any) -> Any:
    """--session FILE and --leave-session."""
    return _SESSION(_LEAVE(function))


@dataclass(slots=True)
class Kept:
    """The session of one run of the program. Without a path nothing is read or written."""

    path: Path | None
    is_left: bool = False
    token_ids: list[int] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, options: dict[str, Any]) -> Kept:
        """Takes the options out. `UsageError` for what can be known to be wrong before a model is loaded."""
        kept = cls(options.pop("session"), options.pop("leave_session"))
        if kept.path is None and kept.is_left:
            raise UsageError("--leave-session is for --session FILE; give it a file.")
        if kept.is_left and not kept.exists:
            raise UsageError(f"{kept.path} is not there, so there is no session to leave as it is.")
        if kept.path is not None and not kept.path.absolute().parent.is_dir():
            raise UsageError(f"{kept.path.parent} is no folder; make it first.")
        return kept

    @property
    def exists(self) -> bool:
        return self.path is not None and self.path.exists()

    def open(self, model: Model) -> None:
        """Brings the file's session into the model's cache, if there is one."""
        if self.path is not None and self.path.exists():
            session = model.open_session(self.path)
            self.token_ids, self.messages = session.token_ids, session.messages

    def before(self, model: Model, asked: str | list[int]) -> list[int]:
        """The ids of a plain prompt, after those of the session."""
        if self.messages:
            raise UsageError(f"{self.path} holds a conversation; go on with --chat, or with herd chat.")
        if not self.token_ids:
            return model.tokenizer.encode(asked) if isinstance(asked, str) else asked
        if asked == "":
            return self.token_ids
        return [*self.token_ids, *(model.tokenizer.encode(asked, bos=False) if isinstance(asked, str) else asked)]

    def asked(self, question: str, system: str | None) -> list[dict[str, Any]]:
        """The conversation with one more question; `system` where one begins."""
        self.check_conversation(system)
        before = self.messages or ([] if system is None else [{"role": "system", "content": system}])
        self.messages = [*before, {"role": "user", "content": question}]
        return self.messages

    def check_conversation(self, system: str | None) -> None:
        """`UsageError` for a session that is no conversation, or that has begun with another system text."""
        if self.token_ids and not self.messages:
            raise UsageError(f"{self.path} holds a plain text and no conversation; go on without --chat, or choose another file.")
        if system is not None and self.messages and self.messages[0] != {"role": "system", "content": system}:
            raise UsageError(f"{self.path} has begun without this system text; leave --system out, or choose another file.")

    def save(self, model: Model, output: Output) -> None:
        """After an answer."""
        if self.messages:
            self.messages = [*self.messages, {"role": "assistant", "content": output.text}]
        self.save_ids(model, [*output.prompt_token_ids, *output.token_ids], self.messages)

    def save_ids(self, model: Model, token_ids: Sequence[int], messages: Sequence[dict[str, Any]]) -> None:
        """Unless there is no file, or it is to stay as it is."""
        if self.path is not None and not self.is_left:
            model.save_session(self.path, token_ids, messages=messages)
