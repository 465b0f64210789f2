"""A server as a process of its own, with a scripted model: `python serving_process.py PORT GRACE_S [PROBLEM]`. SERVER_SETTINGS: more,
as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent.parent)]

from herd.errors import FileProblem  # noqa: E402
from herd.providers.base import Text  # noqa: E402  # found by the line above
from herd.server.keys import Keys  # noqa: E402
from herd.server.running import listen, run  # noqa: E402
from herd.server.settings import Settings  # noqa: E402
from server import echo  # noqa: E402
from server.fake_pool import FakePool, FakeService, Wait  # noqa: E402


@asynccontextmanager
async def models() -> AsyncIterator[FakePool]:
    slow = [*[Text("a")] * 5, Wait(1.0), *[Text("b")] * 5]
    try:
        yield FakePool(FakeService(script=slow), FakeService("endless", script=[Text("a"), Wait(60), Text("b")]))
    finally:
        print("left", flush=True)


async def start(pool: FakePool) -> None:
    if len(sys.argv) > 3:
        raise FileProblem(sys.argv[3])


def main() -> None:
    settings = Settings(port=int(sys.argv[1]), grace_s=float(sys.argv[2]), **json.loads(os.environ.get("SERVER_SETTINGS", "{}")))
    listener = listen(settings)
    port = listener.getsockname()[1]
    run(listener, settings, Keys(None), models(), start, lambda house: print(port, flush=True), echo.ROUTES)


if __name__ == "__main__":
    main()
