"""Every limit of the server in two tables: what an operator sets (`Settings`), and what no request may pass (`LIMITS`)."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import fields
from pathlib import Path

from herd.errors import UsageError
from herd.records import dataclass

_ORIGIN = re.compile(r"\*|[A-Za-z][A-Za-z0-9+.-]*://[^/\s]+/?")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """Bounds of what one request may ask. They are the same on every server, and `/openapi.json` tells them field by field.

    choices             answers to one question (`n`)
    top_logprobs        alternatives that are told for each token
    stop_texts          texts at which an answer ends
    stop_characters     characters of each of them
    logit_bias          tokens whose likelihood is changed
    tokens              the largest number of tokens that any field may name
    seed                the largest seed
    messages            turns of a conversation
    prompts             prompts, or texts to be embedded, in one request
    tools               tools that are offered to the model
    pictures            pictures in one request
    metadata            keys of `metadata`
    name_characters     characters of a model's, tool's, user's or file's name
    schema_bytes        a JSON schema, a regular expression or a grammar
    json_depth          brackets within brackets of a body
    """

    choices: int = 128
    top_logprobs: int = 20
    stop_texts: int = 4
    stop_characters: int = 1000
    logit_bias: int = 300
    tokens: int = 2**31 - 1
    seed: int = 2**63 - 1
    messages: int = 10_000
    prompts: int = 2048
    tools: int = 128
    pictures: int = 64
    metadata: int = 16
    name_characters: int = 512
    schema_bytes: int = 1 << 20
    json_depth: int = 128


LIMITS = RequestLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a server behaves. Each field is an option of `herd serve`, or a line of the file that `--settings` names.

    host                  address to listen on; 127.0.0.1 is reachable from this computer only
    port                  port to listen on; 0 takes a free one
    need_key              whether every request but `/health` has to bring a key of `herd keys`
    allow_origin          web origins whose pages may call this server from a browser, such as https://example.com; `*` for all
    allow_host            names besides the loopback's own under which a server on loopback answers
    image_host            hosts from which pictures may be fetched; none: pictures come inside the message
    log_prompts           whether prompts and answers are written to the log
    adapter_folder        folder whose folders may be loaded as LoRA adapters while the server runs; none: that is not possible
    allow_tuning          whether clients may have models taught (/v1/fine_tuning/jobs); it takes this computer's time and memory
    cache_folder          folder for what the models' memory has no room for: keys and values of prompts, which are then read instead of
                          computed, by this server and by the next; none: they are forgotten
    cache_disk_bytes      what all files in `cache_folder` may take; what was used longest ago goes first; none: 8 GiB
    data_folder           where stored answers, files and batches are kept; none: HERD_HOME/server
    keep_days             days after which answers of /v1/responses are deleted; 0: they are not stored at all
    max_kept_bytes        what the stored answers, files and batches of one key may take
    max_batch_lines       lines of batches that are worked on at the same time, at low priority
    max_connections       open connections; one more is answered 503
    max_requests          requests that are being answered or wait; one more is answered 429
    max_body_bytes        largest body of a request
    max_bodies_bytes      bodies of all running requests together; one more is answered 503
    max_upload_bytes      largest file that is uploaded
    max_header_bytes      largest head of a request, its address included
    max_headers           header lines of a request
    max_url_bytes         longest address of a request
    header_timeout_s      seconds in which the head of a request has to be there
    body_timeout_s        seconds in which its body has to be there
    keep_alive_s          seconds that an idle connection is kept
    stall_timeout_s       seconds that a client may leave an answer unread before its connection is dropped
    deadline_s            seconds after which an answer is given up
    ping_s                seconds without a word after which a stream says that it lives
    grace_s               seconds in which running answers may finish when the server is told to stop
    """

    host: str = "127.0.0.1"
    port: int = 8000
    need_key: bool = False
    allow_origin: tuple[str, ...] = ()
    allow_host: tuple[str, ...] = ()
    image_host: tuple[str, ...] = ()
    log_prompts: bool = False
    adapter_folder: Path | None = None
    allow_tuning: bool = False
    cache_folder: Path | None = None
    cache_disk_bytes: int | None = None
    data_folder: Path | None = None
    keep_days: int = 30
    max_kept_bytes: int = 4 << 30
    max_batch_lines: int = 8
    max_connections: int = 4096
    max_requests: int = 2048
    max_body_bytes: int = 32 << 20
    max_bodies_bytes: int = 1 << 30
    max_upload_bytes: int = 512 << 20
    max_header_bytes: int = 32 << 10
    max_headers: int = 100
    max_url_bytes: int = 8 << 10
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    keep_alive_s: float = 30.0
    stall_timeout_s: float = 30.0
    deadline_s: float = 600.0
    ping_s: float = 15.0
    grace_s: float = 30.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            is_count = each.name.startswith("max_") or (each.name == "cache_disk_bytes" and value is not None)
            if is_count and not (is_number and value == int(value) and 0 < value <= 2**40):
                raise UsageError(f"{each.name} is {value!r:.60}; expected a whole number from 1 to 2^40.")
            if each.name.endswith("_s") and not (is_number and 0 < value <= 10**6):
                raise UsageError(f"{each.name} is {value!r:.60}; expected a number of seconds above 0 and at most 10^6.")
        if self.cache_disk_bytes is not None and self.cache_folder is None:
            raise UsageError("cache_disk_bytes says what the files in cache_folder may take, and there is none. Name a cache_folder too.")
        if not 0 <= self.keep_days <= 36500:
            raise UsageError(f"keep_days is {self.keep_days!r:.60}; expected a whole number of days from 0 to 36500.")
        for origin in self.allow_origin:
            if not _ORIGIN.fullmatch(origin):
                raise UsageError(f"allow_origin has {origin!r:.100}; expected a scheme and a host, as https://example.com, or * for all.")
        if not 0 <= self.port <= 65535:
            raise UsageError(f"port is {self.port!r:.60}; expected a whole number from 0 to 65535.")

    @property
    def is_loopback(self) -> bool:
        """Whether only this computer can reach the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this computer itself."""
    if host.lower().rstrip(".") == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
