"""Pictures that went from the first process to the others lately, so that they go once and not with every step."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import final

import numpy as np

from herd.backends.base import KEPT_PICTURES, Picture, Placed, Plan
from herd.backends.torch.ranks.frames import SentPicture

_NOTHING = np.empty(0, np.float32)


@final
class KnownPictures:
    """Both sides have one, and forget by the same rule: those of this step are kept, and a few of before."""

    def __init__(self) -> None:
        self._held: OrderedDict[bytes, Picture] = OrderedDict()

    def told(self, plan: Plan) -> Plan:
        """What to send: pictures that the other side knows have no pixels."""
        return self._with(plan, lambda known, given: _bare(given) if known is not None else given, _bare)

    def heard(self, plan: Plan) -> Plan:
        """What came, with the pixels of those that were known."""
        return self._with(plan, lambda known, given: given if known is None else known, lambda given: given)

    def _with(self, plan: Plan, choose: Callable[[Picture | None, Picture], Picture], kept: Callable[[Picture], Picture]) -> Plan:
        if not any(span.pictures for span in plan.spans):
            return plan
        chosen: dict[bytes, Picture] = {}
        for picture in (placed.picture for span in plan.spans for placed in span.pictures):
            if picture.digest not in chosen:
                known = self._held.pop(picture.digest, None)
                chosen[picture.digest] = choose(known, picture)
                self._held[picture.digest] = kept(picture) if known is None else known
        while len(self._held) > max(KEPT_PICTURES, len(chosen)):
            self._held.popitem(last=False)
        placed = [tuple(Placed(chosen[each.picture.digest], each.positions) for each in span.pictures) for span in plan.spans]
        return replace(plan, spans=tuple(replace(span, pictures=each) for span, each in zip(plan.spans, placed, strict=True)))


def _bare(picture: Picture) -> Picture:
    return SentPicture(_NOTHING, picture.rows, picture.columns, picture.digest)
