"""A ruling as plain data, and the words that every ruling ends with."""

from __future__ import annotations

from typing import Any

from herd.planner.licence import DISCLAIMER, Ruling
from herd.planner.licence_data import licence_data

VERDICT_WORDS = {
    "allowed": "Allowed.",
    "allowed-with-duties": "Allowed, with duties.",
    "separate-licence-needed": "Needs a licence of your own from Meta first.",
    "not-granted": "Not granted.",
    "ask-a-lawyer": "Ask a lawyer: the wording can be read in more than one way.",
    "contradiction": "The answers contradict each other.",
}
OPEN_SOURCE, OPEN_WEIGHTS = (
    "An open-source licence.",
    "Open weights, and not open source: the licence limits who may use the model, for what, or where.",
)


def ruling_data(ruling: Ruling) -> dict[str, Any]:
    """Everything that a ruling says."""
    data = licence_data()
    return {
        "model": ruling.release.name,
        "licence": ruling.licence.title,
        "source": str(ruling.licence.source),
        "verdict": ruling.verdict,
        "rules": [
            {"verdict": f.verdict, "clauses": list(f.clauses), "why": f.why, "because": f.because or None} for f in ruling.findings
        ],
        "duties": {duty: data.duties[duty] for duty in ruling.duties},
        "unmet": list(ruling.unmet),
        "badges": list(ruling.badges),
        "notices": list(ruling.notices),
        "doubts": {doubt: data.doubts[doubt] for doubt in ruling.doubts},
        "contradicting": list(ruling.fields),
        "clauses": list(ruling.clauses),
        "counted_month": ruling.licence.counted_month,
        "contracting_party": ruling.contracting_party,
        "is_open_source": ruling.licence.is_open_source,
        "note": DISCLAIMER,
    }  # fmt: skip
