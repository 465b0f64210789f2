"""What a check found, and the verdict over all of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Outcome(Enum):
    """How a check ended. Only a problem makes a checkpoint bad."""

    GOOD = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: its name, how it ended, and what there is to say (lines)."""

    check: str
    outcome: Outcome
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Everything that was found about the checkpoint called `name`."""

    name: str
    path: str
    findings: tuple[Finding, ...]

    @property
    def is_good(self) -> bool:
        """Whether no check found a problem."""
        return all(finding.outcome is not Outcome.PROBLEM for finding in self.findings)

    @property
    def summary(self) -> str:
        """The last line of the page."""
        counts = {outcome: sum(finding.outcome is outcome for finding in self.findings) for outcome in Outcome}
        said = [f"{counts[Outcome.GOOD]} checks passed"]
        said += [
            f"{counts[outcome]} {outcome.value}{'s' * (counts[outcome] > 1)}"
            for outcome in (Outcome.WARNING, Outcome.PROBLEM)
            if counts[outcome]
        ]
        said += [f"{counts[Outcome.SKIPPED]} skipped"] if counts[Outcome.SKIPPED] else []
        return f"{'whole' if self.is_good else 'NOT WHOLE'}: {', '.join(said)}"
