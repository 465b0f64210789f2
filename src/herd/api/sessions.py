"""A prefilled session as a file: token ids, and the keys and values that a model computed of them.

    magic | version | about (JSON) | token ids | pages of the cache | SHA-256 of everything before

Who opens it goes on exactly where it was saved: the cache holds the same bits as if the tokens had just been computed. So it
belongs to one model (a digest of its config, weights and adapter) and to one way of computing (the backend's fingerprint, which
names version, instruction set and number formats), and is refused by name by any other.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from herd.errors import FileProblem, UsageError
from herd.files import BoundedReader, MappedFile, atomic_write
from herd.records import dataclass

if TYPE_CHECKING:
    from herd.checkpoints.checkpoint import Checkpoint
    from herd.engine.engine import Engine

MAGIC = b"herdsess"
VERSION = 1
MAX_ABOUT_BYTES = 64 << 20
DIGEST_BYTES = 32
_ABOUT = {"model": str, "weights": str, "fingerprint": str, "page_bytes": int, "computed": int, "messages": list}


@final
@dataclass(frozen=True, slots=True)
class Session:
    """What a session file holds. `token_ids`: the text so far; `messages`: the conversation that they are, if they are one;
    `computed`: of how many tokens the cache has keys and values."""

    token_ids: list[int]
    messages: list[dict[str, Any]] = field(default_factory=list)
    computed: int = 0


@final
@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a session is: the model's name, a digest of all that its numbers follow from, and how they are computed."""

    name: str
    weights: str
    fingerprint: str


def save(path: Path, engine: Engine, owner: Owner, tokens: Sequence[int], messages: Sequence[Mapping[str, Any]]) -> Session:
    """Computes what is not in the cache yet, and writes it all. The file appears when it is whole, over one of that name."""
    from herd.engine.request import Request
    from herd.sampling.params import SamplingParams

    ids = list(tokens)
    # A request chooses a token after its prompt; without room for one more the last token stays to be computed.
    prompt = ids if len(ids) < engine.max_length else ids[:-1]
    for progress in engine.run(Request(tokens=prompt, sampling=SamplingParams(temperature=0.0), max_tokens=1)):
        if progress.error is not None:
            raise progress.error
    with engine.cached(ids) as (count, pages), atomic_write(path) as file:
        about = {"model": owner.name, "weights": owner.weights, "fingerprint": owner.fingerprint, "page_bytes": engine.page_bytes}
        text = json.dumps({**about, "computed": count, "messages": list(messages)}, ensure_ascii=False).encode()
        digest = hashlib.sha256()
        for piece in _pieces(text, ids, pages):
            digest.update(piece)
            file.write(piece)
        file.write(digest.digest())
    return Session(ids, [dict(each) for each in messages], count)


def _pieces(about: bytes, tokens: list[int], pages: Iterator[bytes]) -> Iterator[bytes]:
    yield MAGIC + struct.pack("<IQ", VERSION, len(about)) + about
    yield struct.pack(f"<Q{len(tokens)}I", len(tokens), *tokens)
    yield from pages


def read(path: Path, engine: Engine, owner: Owner) -> Session:
    """Puts a saved session into the cache. `FileProblem` for a file that is damaged or something else, `UsageError` for a session of
    another model or another way of computing, `CapacityError` for a cache that is too small."""
    file = MappedFile(path)
    try:
        reader = BoundedReader(file.view, file.name)
        about, tokens, pages = _parts(reader)
        _check_owner(path, about, owner)
        _check_sizes(reader, about, tokens, pages, engine)
        count = about["computed"]
        size = engine.page_bytes
        engine.put_cached(tokens[:count], [pages[at : at + size] for at in range(0, len(pages), size)])
        return Session(tokens, about["messages"], count)
    finally:
        file.close()


def _parts(reader: BoundedReader) -> tuple[dict[str, Any], list[int], memoryview]:
    """(about, token ids, all pages). What a checksum does not cover is not believed."""
    from herd.files.json import parse_json

    if bytes(reader.view[: len(MAGIC)]) != MAGIC:
        raise FileProblem(f"{reader.name}: is no session of herd. Choose another name, or make one: herd run MODEL --session FILE ...")
    reader.take(len(MAGIC), "the mark of a session")
    version = reader.u32("the version")
    if version != VERSION:
        raise UsageError(f"{reader.name}: is a session of version {version}; this herd reads version {VERSION}. Make it again.")
    about_bytes = reader.u64("the length of the description")
    if about_bytes > MAX_ABOUT_BYTES:
        reader.fail("the length of the description", about_bytes, f"at most {MAX_ABOUT_BYTES}", reader.offset - 8)
    text = bytes(reader.take(about_bytes, "the description"))
    tokens = list(map(int, reader.scalars("I", reader.u64("the number of tokens"), "the token ids")))
    if reader.remaining < DIGEST_BYTES:
        reader.need(DIGEST_BYTES, "the checksum")
    pages = reader.take(reader.remaining - DIGEST_BYTES, "the pages")
    if hashlib.sha256(reader.view[: reader.offset]).digest() != bytes(reader.take(DIGEST_BYTES, "the checksum")):
        raise FileProblem(f"{reader.name}: its checksum does not fit its contents. The file is damaged; make the session again.")
    about = parse_json(text, reader.name)
    if about.keys() != _ABOUT.keys() or any(type(about[key]) is not kind for key, kind in _ABOUT.items()):
        reader.fail("the description", "an object of other fields", ", ".join(_ABOUT), len(MAGIC) + 12)
    return about, tokens, pages


def _check_owner(path: Path, about: Mapping[str, Any], owner: Owner) -> None:
    """`UsageError` for a session that continued here would give other numbers."""
    if about["weights"] != owner.weights:
        raise UsageError(
            f"{path} was made with {about['model']!r:.80}, whose weights are not those of {owner.name}. "
            "Open it with the model that made it, or choose another name for a new session."
        )
    if about["fingerprint"] != owner.fingerprint:
        raise UsageError(
            f"{path} was computed by {about['fingerprint']!r:.160}; here it would go on with {owner.fingerprint!r:.160}, whose numbers "
            "differ. Load the model as it was then, or choose another name for a new session."
        )


def _check_sizes(reader: BoundedReader, about: Mapping[str, Any], tokens: list[int], pages: memoryview, engine: Engine) -> None:
    """`FileProblem` for counts that do not fit each other, `UsageError` for more tokens than the context has."""
    count, size = about["computed"], engine.page_bytes
    is_possible = about["page_bytes"] == size and 0 <= count <= len(tokens)
    if not is_possible or len(pages) != engine.num_cached_pages(count) * size:
        found = f"{count} computed of {len(tokens)} tokens in {len(pages)} bytes of pages of {about['page_bytes']}"
        reader.fail("what is kept", found, f"pages of {size} bytes for as many tokens as there are")
    if any(token >= engine.backend.num_embeddings for token in tokens):
        reader.fail("a token id", max(tokens), f"at most {engine.backend.num_embeddings - 1}")
    if len(tokens) >= engine.max_length:
        raise UsageError(
            f"The session has {len(tokens)} tokens and the context {engine.max_length}, so there is no room to go on. "
            "Load the model with a longer context."
        )


def owner(name: str, engine: Engine, checkpoint: Checkpoint, adapter: Path | None) -> Owner:
    """Whose a session of a loaded model is. `UsageError` if weights were replaced: no file has those."""
    if engine.is_updated:
        raise UsageError(f"The weights of {name} were changed since they were loaded, so no file says which they are.")
    return Owner(name, weights_digest(checkpoint, adapter), engine.backend.fingerprint)


def weights_digest(checkpoint: Checkpoint, adapter: Path | None) -> str:
    """A digest of everything that a model's numbers follow from. All weights are read for it the first time; while the files stay as
    they are it is remembered (HERD_HOME/cache)."""
    from herd.files.kept import keep, open_kept

    name = f"digest-{checkpoint.digest()[:40]}"
    kept = open_kept(name)
    if kept is not None and "sha256" in kept.names:
        found = bytes(kept.part("sha256")).hex()
    else:
        data = checkpoint.contents_digest()
        keep(name, {"source": str(checkpoint.path.absolute())}, {"sha256": memoryview(data)}, lambda: False)
        found = data.hex()
    if adapter is None:
        return found
    whole = hashlib.sha256(found.encode())
    for path in sorted(each for each in adapter.iterdir() if each.name.startswith("adapter_")):
        with path.open("rb") as file:
            whole.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()
