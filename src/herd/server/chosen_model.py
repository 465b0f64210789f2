"""Which model is meant where a request need not say: the only one that can be."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request

from herd.errors import UnknownModel, UsageError
from herd.providers.base import ModelFacts, Offer
from herd.server.house import house_of, visit_of


def only_model(request: Request, wanted: str | None, fits: Callable[[ModelFacts], bool] | None = None, what: str = "a model") -> str:
    """The name that was given; else the only model that the caller may use. fits: tells from a loaded model's facts whether it can be
    meant. `UsageError` for a choice that a client has to make."""
    if wanted is not None:
        return wanted
    visit = visit_of(request)
    offers = [
        each for each in house_of(request).pool.offers() if each.parent is None and (visit.key is None or visit.key.reaches(each.name))
    ]
    found = [each.name for each in offers if fits is None or (each.facts is not None and fits(each.facts))]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"There is more than one that could be meant: {_names(found)}. Say which, as model.", param="model")
    raise _none(offers, what)


def _none(offers: list[Offer], what: str) -> UsageError:
    waiting = [each.name for each in offers if each.facts is None]
    if waiting:
        return UsageError(f"No model that is loaded is {what}. Of those that are not, name one as model: {_names(waiting)}.", param="model")
    return UnknownModel(f"This server has no model that is {what}.", param="model")


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
