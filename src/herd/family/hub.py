"""Releases that their publisher serves on a hub: fetched with `huggingface_hub`, checked file by file.

The hub's commit is fixed first; then files are fetched (resumed where they were); then every size, and the SHA-256 of every
large file, is compared with what the hub says of that commit. The library itself would return a half-filled folder when the
hub refuses in the middle, so the check here is what decides.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from herd.errors import FileProblem, HerdError, ProviderError
from herd.family.catalogue import Release
from herd.family.download import digest, require_space
from herd.family.offline import silence_telemetry
from herd.family.progress import Progress
from herd.files.writing import FULL, cannot_write

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LICENCES = ("LICENSE*", "LICENCE*", "USE_POLICY*", "NOTICE*")
PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template*",
    *LICENCES,
)
"""What is fetched: weights, configuration, tokenizer and licence in the Hugging Face layout, not Meta's copy of the same weights."""

META_PATTERNS = ("consolidated.*.pth", "fp8_scales_*.pt", "int4_scales_*.pt", "params.json", "tokenizer.model", *LICENCES)
"""The same of a release that is published in Meta's layout only."""

_LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class _File:
    """One file of a commit, as the hub describes it. `sha256` is known for large files only."""

    path: str
    num_bytes: int
    sha256: str | None


def pull_repository(release: Release, folder: Path, progress: Progress) -> tuple[str, dict[str, str]]:
    """Fills `folder` with the release's files.

    Returns where they are from (repository and commit), and by name the SHA-256 of those for which the hub announced one.
    """
    silence_telemetry()
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    repository = release.repository
    if repository is None:
        raise ProviderError(f"{release.name} is on no hub. Name its folder or .gguf file instead.")
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="herd")
    with _explained(release, api.endpoint, folder):
        commit, files = _listing(api, repository, is_meta="huggingface" not in release.layouts)
    total = sum(file.num_bytes for file in files)
    require_space(folder, total - _present_bytes(folder), release.name)
    with _explained(release, api.endpoint, folder), _watched(folder, release.name, total, progress):
        api.snapshot_download(repository, revision=commit, local_dir=folder, allow_patterns=[file.path for file in files])
    _check(folder, files, release.name, progress)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return f"{repository} at commit {commit}, from {api.endpoint}", {file.path: file.sha256 for file in files if file.sha256 is not None}


def _listing(api: HfApi, repository: str, *, is_meta: bool) -> tuple[str, list[_File]]:
    """The newest commit and those of its files that are wanted."""
    patterns, weights = (META_PATTERNS, ".pth") if is_meta else (PATTERNS, ".safetensors")
    info = api.model_info(repository, files_metadata=True)
    files = []
    for entry in info.siblings or []:
        path = PurePosixPath(entry.rfilename)
        if len(path.parts) != 1 or not any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns):
            continue
        files.append(_File(path.name, entry.size or 0, entry.lfs.sha256 if entry.lfs is not None else None))
    if info.sha is None or not any(file.path.endswith(weights) for file in files):
        raise ProviderError(
            f"{repository} on {api.endpoint} has no {weights} files, in which this release is published. Check HF_ENDPOINT; "
            "if the weights are elsewhere, name their folder or GGUF file instead."
        )
    return info.sha, files


def _check(folder: Path, files: list[_File], name: str, progress: Progress) -> None:
    """`FileProblem` for the first file that is not what the hub said; that file is deleted, so that pulling again fetches it."""
    done, total = 0, sum(file.num_bytes for file in files)
    for file in files:
        path = folder / file.path
        found = path.stat().st_size if path.is_file() else -1
        if found != file.num_bytes:
            path.unlink(missing_ok=True)
            raise FileProblem(
                f"{file.path} of {name} has {max(found, 0):,} bytes; the hub says {file.num_bytes:,}. Pull again to fetch it anew."
            )
        if file.sha256 is not None and digest(path) != file.sha256:
            path.unlink()
            raise FileProblem(
                f"{file.path} of {name} does not have the SHA-256 that the hub says. It was deleted; pull again to fetch it anew."
            )
        done += file.num_bytes
        progress(f"checking {name}", done, total)


@contextmanager
def _explained(release: Release, endpoint: str, folder: Path) -> Iterator[None]:
    """Turns what the hub's library raises into errors that say what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    page = f"{endpoint}/{release.repository}"
    try:
        yield
    except HerdError:
        raise
    except GatedRepoError as error:
        advice = f"Accept the {release.licence} at {page}, make a read token at {endpoint}/settings/tokens, and set HF_TOKEN to it."
        raise ProviderError(f"{release.repository} is gated: its publisher wants you to accept its licence first. {advice}") from error
    except RepositoryNotFoundError as error:
        advice = "If it is gated, set HF_TOKEN to a token that may read it." if release.gated else "Check HF_ENDPOINT."
        raise ProviderError(f"{endpoint} does not show {release.repository} to you. {advice}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ProviderError(
            f"{endpoint} cannot be reached, and {release.name} is not on this machine. Check the network and HF_ENDPOINT; "
            "what arrived is kept."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise ProviderError(f"{endpoint} answered {status} for {release.repository}. What arrived is kept; try again later.") from error
    except OSError as error:
        # A full disk is noticed by a write, and that error names no file.
        if error.errno is not None and (error.filename is not None or error.errno in FULL):
            raise cannot_write(folder if error.filename is None else Path(error.filename), error) from error
        raise ProviderError(
            f"Fetching from {endpoint} failed ({error}). Check the network and HF_ENDPOINT; what arrived is kept."
        ) from error
    except Exception as error:
        # The library's transport raises its own errors for lost connections, and they change with its versions.
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "requests", "urllib3", "hf_xet"):
            raise
        raise ProviderError(f"{endpoint} cannot be reached ({error}). Check the network and HF_ENDPOINT; what arrived is kept.") from error


@contextmanager
def _watched(folder: Path, name: str, total: int, progress: Progress) -> Iterator[None]:
    """Reports how many bytes have arrived while the block runs."""
    finished = threading.Event()

    def look() -> None:
        while not finished.wait(_LOOK_S):
            progress(name, min(_present_bytes(folder), total), total)

    watcher = threading.Thread(target=look, name="herd-pull-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()
    progress(name, total, total)


def _present_bytes(folder: Path) -> int:
    """Bytes of everything in `folder`, finished or not."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total
