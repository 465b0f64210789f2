"""Pictures that a request names by address. Off unless hosts are allowed; then only from those, and never from inside.

    url --read_url--> Address --resolve once--> one public address --connect to it--> picture's bytes
                         ^                                               |
                         +------------- each redirect, at most 3 --------+

One function reads addresses, for the check and for the connection alike, so the two cannot differ. A name is resolved once and the
connection goes to what was checked. A redirect is a new address with the same checks. Bytes, time and type of the reply are bounded.
Why a connection failed is not said to the client: that would let it ask what listens inside.

An allowed host is `name`, `*.name` (whatever ends with it) or `name:port`; without a port it is the scheme's own. A network address
that is not public is refused unless it is itself on the list (`10.0.0.5:8080`), whatever name led to it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urljoin

import h11

from herd.errors import UsageError
from herd.records import dataclass

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MAX_REDIRECTS = 3
MAX_URL_CHARACTERS = 2048
PICTURE_TYPES = frozenset({"image/png", "image/jpeg", "image/jpg", "image/webp", "image/gif", "image/bmp"})
_PORTS = {"http": 80, "https": 443}
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_URL = re.compile(
    rf"(?P<scheme>https?)://(?P<host>{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]{{2,45}}\])(?::(?P<port>[0-9]{{1,5}}))?"
    r"(?P<path>/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?(?P<query>\?[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?",
    re.ASCII,
)
_SCHEME_AND_HOST = re.compile(r"[A-Za-z]+://[^/?#]*", re.ASCII)
_READ_BYTES = 1 << 16

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Name and port -> network addresses."""


@dataclass(frozen=True, slots=True)
class Address:
    """A web address in its parts. `host` is in lower case, without brackets; `target` is path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def is_default_port(self) -> bool:
        return _PORTS[self.scheme] == self.port

    @property
    def host_field(self) -> str:
        """As the field `Host` says it."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.is_default_port else f"{name}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What may be fetched: from which hosts, how many bytes, and for how long in all."""

    hosts: Sequence[str] = ()
    max_bytes: int = 20 << 20
    timeout_s: float = 10.0


def read_url(url: str) -> Address:
    """The parts of an http or https address. `UsageError` for anything that two programs could read differently: user names,
    backslashes, white space, control or other characters, numbers written as hosts in ways of their own, names that end with a dot."""
    if len(url) > MAX_URL_CHARACTERS:
        raise UsageError(f"The address has {len(url)} characters; at most {MAX_URL_CHARACTERS} are read.")
    bare = url.partition("#")[0]
    lowered = _SCHEME_AND_HOST.sub(lambda match: match.group().lower(), bare, count=1)
    match = _URL.fullmatch(lowered)
    if match is None:
        raise UsageError(
            "The address is not a plain one: expected http:// or https://, a host, and a path in ASCII, without user name or backslash."
        )
    host = match["host"].strip("[]")
    port = int(match["port"] or _PORTS[match["scheme"]])
    if not 0 < port < 65536 or (":" in host and _ip(host) is None) or (_looks_numeric(host) and _ip(host) is None):
        raise UsageError("The address names a host or a port that no machine has.")
    return Address(match["scheme"], host, port, (match["path"] or "/") + (match["query"] or ""))


def check_host(address: Address, hosts: Sequence[str]) -> None:
    """`UsageError` unless the host and port of the address are on the list."""
    if not any(_matches(address, entry.strip().lower()) for entry in hosts):
        raise UsageError("Pictures are fetched from listed hosts and ports only, and this is none. Send the picture as a data: URL.")


async def fetch_picture(url: str, rules: Rules, *, resolve: Resolve | None = None) -> bytes:
    """The bytes of a picture. `UsageError`, in words that tell nothing of the network, for what may not or cannot be fetched."""
    if not rules.hosts:
        raise UsageError(
            "Pictures are not fetched from addresses here; send the picture itself, as a data: URL (data:image/png;base64,...). Who runs"
            " this server can allow hosts."
        )
    address = read_url(url)
    try:
        async with asyncio.timeout(rules.timeout_s):
            for _ in range(MAX_REDIRECTS + 1):
                check_host(address, rules.hosts)
                found = await _get(address, rules, resolve or _system_resolve)
                if isinstance(found, bytes):
                    return found
                address = _redirected(address, found)
    except TimeoutError:
        raise UsageError(f"The picture did not arrive within {rules.timeout_s:g} s.") from None
    except (OSError, ssl.SSLError, h11.RemoteProtocolError, UnicodeError):
        raise UsageError("The picture at this address could not be fetched.") from None
    raise UsageError(f"The address led on more than {MAX_REDIRECTS} times.")


def _redirected(address: Address, location: str) -> Address:
    """Where a reply leads. From https it stays there."""
    new = read_url(urljoin(f"{address.scheme}://{address.host_field}{address.target}", location))
    if address.scheme == "https" and new.scheme != "https":
        raise UsageError("The address leads from https to http.")
    return new


async def _get(address: Address, rules: Rules, resolve: Resolve) -> bytes | str:
    """A picture's bytes, or where it went."""
    where = _chosen(await resolve(address.host, address.port), address.port, rules.hosts)
    context = ssl.create_default_context() if address.scheme == "https" else None
    async with _connection(where, address, context) as (reader, writer):
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 15)
        fields = [("Host", address.host_field), ("Accept", ", ".join(sorted(PICTURE_TYPES))), ("Accept-Encoding", "identity")]
        request = h11.Request(method="GET", target=address.target, headers=[*fields, ("Connection", "close")])
        writer.write((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
        await writer.drain()
        reply = await _next(connection, reader)
        while isinstance(reply, h11.InformationalResponse):
            reply = await _next(connection, reader)
        if not isinstance(reply, h11.Response):
            raise UsageError("The picture at this address could not be fetched.")
        headers = {name.decode("ascii").lower(): value.decode("latin-1") for name, value in reply.headers}
        if reply.status_code in (301, 302, 303, 307, 308) and "location" in headers:
            return headers["location"]
        _check_reply(reply.status_code, headers, rules.max_bytes)
        return await _body(connection, reader, rules.max_bytes)


def _check_reply(status: int, headers: dict[str, str], max_bytes: int) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if status != 200:
        raise UsageError("The picture at this address could not be fetched.")
    if kind not in PICTURE_TYPES or headers.get("content-encoding", "identity").lower() != "identity":
        raise UsageError("What is at this address is no picture: expected PNG, JPEG, WebP, GIF or BMP.")
    length = headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and int(length[:20]) > max_bytes:
        raise _too_large(max_bytes)


async def _body(connection: h11.Connection, reader: asyncio.StreamReader, max_bytes: int) -> bytes:
    data = bytearray()
    while not isinstance(event := await _next(connection, reader), h11.EndOfMessage | h11.ConnectionClosed):
        if isinstance(event, h11.Data):
            data += event.data
            if len(data) > max_bytes:
                raise _too_large(max_bytes)
    return bytes(data)


async def _next(connection: h11.Connection, reader: asyncio.StreamReader) -> object:
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(_READ_BYTES))
    return event


@asynccontextmanager
async def _connection(
    where: str, address: Address, context: ssl.SSLContext | None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    name = address.host if context is not None else None
    reader, writer = await asyncio.open_connection(where, address.port, ssl=context, server_hostname=name)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def _chosen(found: Sequence[str], port: int, hosts: Sequence[str]) -> str:
    """The first address of a name, when every one of them may be connected to: a name that also leads inside is refused as a whole."""
    if not found or not all(_may_connect(text, port, hosts) for text in found):
        raise UsageError("Pictures are not fetched from this host: its address is not a public one.")
    return found[0]


def _may_connect(text: str, port: int, hosts: Sequence[str]) -> bool:
    address = _ip(text)
    if address is None:
        return False
    listed = {entry.strip().lower() for entry in hosts}
    name = f"[{address}]" if address.version == 6 else str(address)
    if f"{name}:{port}" in listed or (name in listed and port in _PORTS.values()):
        return True
    return all(each.is_global and not each.is_multicast for each in (address, *_inner(address)))


def _inner(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses that an IPv6 one stands for: mapped, 6to4, Teredo, NAT64."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    held = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        held.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [each for each in held if each is not None]


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


def _looks_numeric(host: str) -> bool:
    """Whether the last label is a number, as in `127.1`, `2130706433` and `0x7f.1`: no name does, and programs read these differently."""
    return re.fullmatch(r"[0-9]+|0x[0-9a-f]*", host.rpartition(".")[2], re.ASCII) is not None


def _matches(address: Address, entry: str) -> bool:
    name = f"[{address.host}]" if ":" in address.host else address.host
    if entry.startswith("*."):
        suffix, _, port = entry[1:].partition(":")
        return name.endswith(suffix) and _port_matches(address, port)
    if entry == name:
        return address.is_default_port
    return entry == f"{name}:{address.port}"


def _port_matches(address: Address, port: str) -> bool:
    return port == str(address.port) if port else address.is_default_port


def _too_large(max_bytes: int) -> UsageError:
    return UsageError(f"The picture at this address is larger than {max_bytes} bytes.")


async def _system_resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))
