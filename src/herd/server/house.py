"""What every handler may use: the models, the settings, the keys, the measures."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import field
from typing import TYPE_CHECKING

from herd.providers.base import Caller, Pool, Service
from herd.providers.jobs import Jobs
from herd.records import dataclass
from herd.server.admission import Admission
from herd.server.callers import Visit
from herd.server.keeping import Keeping
from herd.server.keys import Keys
from herd.server.metrics import Metrics
from herd.server.observed import Observed
from herd.server.settings import Settings

if TYPE_CHECKING:
    from starlette.requests import Request


@dataclass(kw_only=True)
class House:
    """The server as its handlers see it, in `request.app.state.house`.

    jobs          fine-tuning, where there is any
    started       seconds since 1970
    is_draining   whether it was told to stop: what runs may finish, and nothing new begins
    """

    pool: Pool
    settings: Settings
    keys: Keys
    metrics: Metrics
    admission: Admission
    keeping: Keeping
    jobs: Jobs | None = None
    started: float = field(default_factory=time.time)
    is_draining: bool = False

    @asynccontextmanager
    async def use(self, request: Request | Visit, model: str) -> AsyncIterator[Service]:
        """A model for this request's caller, kept until the block ends. `UnknownModel`, `CapacityError`; `ApiError` 404 for a model that
        the caller's key does not reach.

        Whatever is asked of the service runs in the caller's name, with the request's deadline, and is measured: handlers cannot
        forget it, and no body can say otherwise.
        """
        visit = request if isinstance(request, Visit) else visit_of(request)
        visit.check_model(model)
        async with self.pool.use(model) as service:
            yield Observed(service, visit, self.metrics, self.admission, self.settings, model)


def house_of(request: Request) -> House:
    found = request.app.state.house
    assert isinstance(found, House)
    return found


def visit_of(request: Request) -> Visit:
    """Who asks, and since when."""
    found = request.scope["herd.visit"]
    assert isinstance(found, Visit)
    return found


def caller(request: Request) -> Caller:
    """On whose behalf a request runs; its key decides, never its body."""
    return visit_of(request).caller


def make_house(pool: Pool, settings: Settings, keys: Keys | None = None, jobs: Jobs | None = None) -> House:
    """A house with fresh measures."""
    metrics = Metrics(pool)
    return House(
        pool=pool,
        settings=settings,
        keys=keys or Keys(None),
        metrics=metrics,
        admission=Admission(settings, metrics),
        keeping=Keeping(settings),
        jobs=jobs,
    )
