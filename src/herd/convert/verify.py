"""Is a checkpoint whole? Every file, tensor and key, every value, its words and its numbers, on one page."""

from __future__ import annotations

import os

from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.folder import inside
from herd.checkpoints.open import open_checkpoint
from herd.convert.findings import Finding, Outcome, Verdict
from herd.convert.scanning import check_published_sums, scan_weights, scanned_bytes
from herd.convert.self_test import self_test
from herd.convert.text_checks import TEXTS, check_format, check_tokenizer
from herd.convert.writing import Told
from herd.errors import FileProblem
from herd.family.download import digest
from herd.family.finding import Found, find_model
from herd.family.progress import Progress, silent
from herd.family.store import SOURCE_FILE, announced_sums
from herd.files.checking import check_kept, kept_bytes


def verify(model: str | os.PathLike[str], *, progress: Progress = silent) -> Verdict:
    """Check the checkpoint that `model` names, as for `herd.load`; nothing is fetched.

    files        every tensor and key accounted for, shapes against the config
    release      the number of parameters against what is published, for a model that the family knows
    checksums    those that Meta's files carry, and the published SHA-256 of files that were pulled
    weights      all values finite, no matrix of zeros
    tokenizer    against the embedding
    chat format  against the template that came with the model
    self-test    the compiled backend against the definition, on a short prompt
    cache        what is kept of it in HERD_HOME/cache against the digests that were kept with it; what is damaged is deleted

    `UsageError` if there is no such model; what is wrong with it is in the verdict.
    """
    found = find_model(model, is_fetched=False)
    try:
        checkpoint = open_checkpoint(found.path)
    except FileProblem as problem:
        return Verdict(found.name, str(found.path), (Finding("files", Outcome.PROBLEM, str(problem)),))
    try:
        return Verdict(found.name, str(found.path), tuple(_findings(found, checkpoint, progress)))
    finally:
        checkpoint.close()


def _findings(found: Found, checkpoint: Checkpoint, progress: Progress) -> list[Finding]:
    findings: list[Finding | None] = [_files(checkpoint), _release(found, checkpoint)]
    try:
        findings += [check_published_sums(checkpoint), _digest(found)]
        findings.append(scan_weights(checkpoint, Told(progress, f"reading {found.name}", scanned_bytes(checkpoint))))
    except FileProblem as problem:
        findings.append(Finding("weights", Outcome.PROBLEM, str(problem)))
    text, tokenizer = check_tokenizer(checkpoint)
    findings.append(text)
    findings.append(check_format(checkpoint, tokenizer, found.release.chat_format if found.release is not None else None))
    if all(each is None or each.outcome is not Outcome.PROBLEM or each.check == "chat format" for each in findings):
        findings.append(self_test(checkpoint, tokenizer.encode(TEXTS[2]) if tokenizer is not None else None))
    else:
        findings.append(Finding("self-test", Outcome.SKIPPED, "something above is wrong already"))
    findings.append(_kept(found, checkpoint, progress))
    return [each for each in findings if each is not None]


def _kept(found: Found, checkpoint: Checkpoint, progress: Progress) -> Finding | None:
    """Weights as an earlier start packed them, which the next start would map unread. None where nothing is kept."""
    told = Told(progress, f"reading what is kept of {found.name}", kept_bytes(checkpoint.path))
    checked = check_kept(checkpoint.path, told.add)
    if checked.removed:
        advice = "Deleted: the next start packs the weights anew. End what still runs this model; answers it gave may be wrong"
        return Finding("cache", Outcome.PROBLEM, "\n".join([*checked.removed, advice]))
    if not checked.num_files:
        return None
    files = "1 file has" if checked.num_files == 1 else f"{checked.num_files} files have"
    return Finding("cache", Outcome.GOOD, f"{files} the bytes that were kept ({checked.num_bytes:,})")


def _files(checkpoint: Checkpoint) -> Finding:
    stored = checkpoint.facts.get("stored_as")
    dtypes = str(stored.value) if stored is not None else ", ".join(sorted({checkpoint.dtype(spec.name).name for spec in checkpoint.specs}))
    what = (
        f"{checkpoint.layout} layout, {checkpoint.architecture}: {len(checkpoint.specs)} weights, {checkpoint.num_bytes:,} bytes ({dtypes})"
    )
    return Finding("files", Outcome.GOOD, f"{what}; every tensor and key is accounted for, every shape is the config's")


def _digest(found: Found) -> Finding | None:
    """The files of a pulled release against the SHA-256 that was published of them: in the family, or by the hub when it was pulled.

    None where nothing was published. `FileProblem` for a damaged note of what the hub said.
    """
    folder = found.path if found.path.is_dir() else found.path.parent
    published = announced_sums(folder)
    wheel = found.release.wheel if found.release is not None else None
    if wheel is not None and found.path.name == wheel.file_name:
        published = {wheel.file_name: wheel.sha256}
    if not published:
        return None
    wrong = []
    for name, expected in published.items():
        try:
            actual = digest(inside(folder, name, SOURCE_FILE))
        except FileProblem as problem:
            wrong.append(str(problem))
            continue
        if actual != expected:
            wrong.append(f"{name} has the SHA-256 {actual}; published is {expected}")
    if wrong:
        return Finding("checksums", Outcome.PROBLEM, "\n".join([*wrong, "Its bytes were changed: remove the model and pull it again"]))
    what = f"{len(published)} files have" if len(published) > 1 else f"{next(iter(published))} has"
    return Finding("checksums", Outcome.GOOD, f"{what} the published SHA-256")


def _release(found: Found, checkpoint: Checkpoint) -> Finding | None:
    """The shape against what the family says of a release of this name."""
    if found.release is None:
        return None
    count = sum(spec.count for spec in checkpoint.specs)
    published = found.release.parameters
    if published is None or count in (published, found.release.huggingface_parameters):
        return Finding("release", Outcome.GOOD, f"{count:,} parameters, as {found.release.title} has")
    return Finding("release", Outcome.PROBLEM, f"{count:,} parameters; {found.release.title} has {published:,}")
