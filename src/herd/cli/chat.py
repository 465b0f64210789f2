"""`herd chat`: a conversation in the terminal, or one line at a time from a pipe."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from herd.cli.options import SAMPLING, Examples, given, held_to, holding_options, load_model, loading_options, readable, sampling_options
from herd.cli.sessions import Kept, session_options
from herd.errors import HerdError, UsageError

if TYPE_CHECKING:
    from herd.api import Model
    from herd.providers.base import Finished, Usage

HELP = """\
/help           this list
/system TEXT    who the model should be; starts over (without TEXT: shows it)
/reset          start over, with the same system text
/save FILE      keep the conversation as JSON
/stats          speed and length of the last answer
/exit           end (also Ctrl-D)
A line that ends with \\ goes on in the next. Ctrl-C stops an answer."""
HISTORY_LINES = 1000


@click.command(
    cls=Examples,
    short_help="Talk to a model.",
    examples="""
    herd chat                                    the default model, fetched if it is not here
    herd chat llama-3.2-1b-instruct --system "Answer in one sentence."
    herd chat ./model.gguf --temperature 0.2
    printf 'Hello\\nAnd again\\n' | herd chat     one message per line, from a pipe
    herd chat --session friday.herd              goes on where it ended, and is kept there again
    herd chat --regex "(yes|no)"                 every answer is one of the two
    """,
)
@click.argument("model", required=False)
@click.option("--system", metavar="TEXT", help="Who the model should be.")
@session_options
@holding_options
@sampling_options
@loading_options
def chat(model: str | None, system: str | None, **options: Any) -> None:
    """Talk to MODEL. /help lists what you can say besides."""
    from herd.cli.output import is_terminal
    from herd.family.catalogue import DEFAULT_NAME

    if sys.stdin is None or sys.stdin.closed:
        raise UsageError("Standard input is closed, so there is nobody to talk to.")
    is_person, kept = is_terminal(sys.stdin), Kept.of(options)
    with load_model(model or DEFAULT_NAME, options) as loaded:
        kept.open(loaded)
        kept.check_conversation(system)
        request = {**given(options, SAMPLING), "max_tokens": options["max_tokens"], "stop": options["stop"]}
        request["response_format"] = held_to(options)
        conversation = Conversation(loaded, None if system is None else readable(system, "--system"), request, is_person=is_person)
        conversation.go_on(kept.messages)
        conversation.check()
        if is_person:
            click.echo(f"{loaded.name}, {loaded.provider.facts.context_length:,} tokens of context. /help lists what you can say.")
        with _history(is_person):
            _talk(conversation, is_person)
        if any(message["role"] == "user" for message in conversation.messages):
            kept.save_ids(loaded, loaded.chat_format.render(conversation.messages, add_generation_prompt=False), conversation.messages)


def _talk(conversation: Conversation, is_person: bool) -> None:
    """Until the conversation ends. Ctrl-C of a person, whenever it comes and however often, gives a new prompt."""
    is_interrupted = False
    while True:
        try:
            if is_interrupted:  # said inside the try, so that one more Ctrl-C meanwhile ends nothing
                click.echo("\n/exit or Ctrl-D ends.")
                is_interrupted = False
            for line in _lines(is_person):
                if not conversation.hear(line):
                    return
            return
        except KeyboardInterrupt:
            if not is_person:
                raise
            is_interrupted = True


class Conversation:
    """What was said so far, and what to do with the next line.

    A person reads an error and goes on. Lines from a pipe were written by somebody who counts on all of them: there the first
    error is raised, and ends the program with its exit code.
    """

    def __init__(self, model: Model, system: str | None, request: dict[str, Any], *, is_person: bool = True) -> None:
        self._model = model
        self._system = system
        self._request = request
        self._is_person = is_person
        self._last: Finished | None = None
        self.messages: list[dict[str, Any]] = []
        self._start_over()

    def go_on(self, messages: list[dict[str, Any]]) -> None:
        """What was said in an earlier session comes first."""
        if messages:
            self.messages = list(messages)
            self._system = messages[0]["content"] if messages[0]["role"] == "system" else None

    def check(self) -> None:
        """`UsageError` now, and not after the first message, if this model cannot chat or an option is impossible."""
        messages = [*self.messages, {"role": "user", "content": "?"}]
        self._model.chat_token_ids(self._model.chat_request(messages, **self._request))

    def hear(self, line: str) -> bool:
        """Answers a message or obeys a command; False ends the conversation."""
        text = line.strip()
        if not text:
            return True
        if not text.startswith("/"):
            self._answer(text)
            return True
        name, _, rest = text.partition(" ")
        try:
            return self._obey(name, rest.strip())
        except HerdError as error:
            self._complain(error)
            return True

    def _complain(self, error: HerdError) -> None:
        if not self._is_person:
            raise error
        click.echo(f"Error: {error}", err=True)

    def _obey(self, name: str, rest: str) -> bool:
        match name:
            case "/help":
                click.echo(HELP)
            case "/exit" | "/quit":
                return False
            case "/reset":
                self._start_over()
                click.echo("Starting over.")
            case "/system" if rest:
                self._system = rest
                self._start_over()
                click.echo("Starting over with this system text.")
            case "/system":
                click.echo(self._system or "There is no system text of yours; the model's own applies.")
            case "/save":
                self._save(rest)
            case "/stats":
                click.echo(_stats(self._last.usage) if self._last is not None else "There is no answer yet.")
            case _:
                raise UsageError(f"{name:.40} is not a command; /help lists them.")
        return True

    def _answer(self, text: str) -> None:
        """Streams the answer. What was said stays said, also when Ctrl-C cuts it; a refused message is forgotten."""
        from herd.cli.output import say
        from herd.providers.base import Failed, Finished, Text

        before = len(self.messages)
        pieces: list[str] = []
        try:
            self.messages.append({"role": "user", "content": text})
            for event in self._model.chat(self.messages, **self._request):
                match event:
                    case Text(piece):
                        pieces.append(piece)
                        say(piece)
                    case Finished():
                        self._last = event
                        say(self._how_it_was_cut(event))
                    case Failed(error):
                        raise error
            say("\n")
        except KeyboardInterrupt:
            if not self._is_person:
                raise
            say(" [stopped]\n")
        except HerdError as error:
            say("\n" if pieces or self._is_person else "")
            self._complain(error)
        finally:
            # Also when another Ctrl-C comes while something is printed: a question stays only with its answer.
            if pieces:
                self.messages[before + 1 :] = [{"role": "assistant", "content": "".join(pieces)}]
            else:
                del self.messages[before:]

    def _how_it_was_cut(self, end: Finished) -> str:
        """What a terminal shows after an answer that did not end by itself; files and pipes get the answer alone."""
        from herd.cli.output import is_terminal
        from herd.sampling.stop import StopReason

        if end.stop_reason is not StopReason.LENGTH or not is_terminal(sys.stdout):
            return ""
        limit = self._request.get("max_tokens")
        return " [cut: the context is full]" if limit is None or end.usage.completion_tokens < limit else " [cut: --max-tokens]"

    def _start_over(self) -> None:
        self.messages = [] if self._system is None else [{"role": "system", "content": self._system}]

    def _save(self, name: str) -> None:
        from herd.files import atomic_write

        if not name:
            raise UsageError("Say where: /save FILE")
        path = Path(name).expanduser()
        if path.exists():
            raise UsageError(f"{path} exists already; choose another name.")
        value = {"model": self._model.name, "messages": self.messages}
        with atomic_write(path) as file:
            file.write(json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n")
        click.echo(f"Saved to {path}.")


def _stats(usage: Usage) -> str:
    later = max(usage.completion_tokens - 1, 0)
    new = usage.prompt_tokens - usage.cached_tokens
    decode = f"{later / usage.decode_s:.1f} tokens/s" if usage.decode_s and later else "too short to time"
    prompt = f"{new / usage.prompt_s:.1f} tokens/s" if usage.prompt_s and new else "from the cache"
    return (
        f"answer {usage.completion_tokens} tokens, {decode} · prompt {usage.prompt_tokens} tokens "
        f"({usage.cached_tokens} from the cache), {prompt} · first token after {usage.prompt_s:.2f} s"
    )


def _lines(is_person: bool) -> Iterator[str]:
    """What is typed or piped in, until it ends."""
    while True:
        try:
            line = _line("> " if is_person else "")
            while line.endswith("\\"):
                line = f"{line[:-1]}\n{_line('. ' if is_person else '')}"
        except EOFError:
            if is_person:
                click.echo("")
            return
        yield line


def _line(prompt: str) -> str:
    if prompt:
        return readable(input(prompt), "What you typed")
    data = sys.stdin.buffer.readline()
    if not data:
        raise EOFError
    try:
        return data.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"Standard input is not valid UTF-8 (at byte {error.start} of a line). Convert it, for example with iconv."
        ) from error


@contextlib.contextmanager
def _history(is_person: bool) -> Iterator[None]:
    """Lines typed earlier, with the arrow keys; kept in a file that only its owner can read. Not keeping it is no error."""
    if not is_person:
        yield
        return
    try:
        import readline
    except ImportError:
        yield
        return
    from herd.files import home

    try:
        path = home() / "chat_history"
    except HerdError:
        yield
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        os.chmod(path, 0o600)
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            readline.write_history_file(path)
            os.chmod(path, 0o600)
