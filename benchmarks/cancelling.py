"""Do a hundred thousand requests whose clients leave cost a server anything for good?

    python benchmarks/cancelling.py [--model PATH] [--requests 100000] [--clients 64] [--seed 1]

A real `herd serve` of a small model. Twice as many clients as a step has places ask, and leave at a random moment: while their request
waits, in its prompt, in the middle of the answer, or when it is over. Then memory, file descriptors and threads of both processes, tasks,
connections and requests of the web process, and pages of the cache are compared with what they were after a warm-up that did the same.
Prints one JSON line; exit code 1 if something was left over.
"""

from __future__ import annotations

import asyncio
import collections
import gc
import random
import socket
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

from record import say
from serving import free_port, herd_server
from soak import children, left_over, measured, request_bytes, settled

WARM = 3_000
GROWTH_MIB = 16
AT_ONCE = struct.pack("ii", 1, 0)
STAGES = ("just sent", "accepted", "in its answer", "over")


async def leave(port: int, chance: random.Random, counts: collections.Counter[str]) -> None:
    """One request, left at a random moment; counted by how far it had come."""
    prompt = f"{chance.randrange(1000)} " + "word " * chance.choice((1, 8, 50))
    body = {"prompt": prompt, "max_tokens": chance.choice((2, 4, 40)), "stream": True, "n": chance.choice((1, 1, 1, 3))}
    stage = chance.choice(STAGES)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        # The connection is cut, not closed: the system then keeps no memory of it either.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        writer.write(request_bytes("/v1/completions", body))
        if stage == "just sent":
            await asyncio.sleep(0.01 * chance.random())
        elif stage == "accepted":  # then the head of the answer comes
            assert await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.01 * chance.random())
        elif stage == "in its answer":
            assert await reader.readuntil(b"data: {")
            await asyncio.sleep(0.05 * chance.random())
        else:
            assert await reader.readuntil(b"data: [DONE]")
        counts[stage] += 1
    except (asyncio.IncompleteReadError, OSError) as problem:
        counts[f"{stage}: {type(problem).__name__}"] += 1
    finally:
        writer.transport.abort()


async def load(port: int, requests: int, clients: int, seed: int) -> collections.Counter[str]:
    counts: collections.Counter[str] = collections.Counter()
    left = iter(range(requests))

    async def client(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        for _ in left:
            await leave(port, chance, counts)
            if (done := sum(counts.values())) % 10_000 == 0:
                say(f"{done} requests: {dict(counts)}")

    await asyncio.gather(*map(client, range(clients)))
    return counts


def engine(process_id: int) -> dict[str, float]:
    """What must not grow, of the process that computes."""
    (found,) = children(process_id)
    folder = Path(f"/proc/{found}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return {
        "engine_resident_mib": int(status["VmRSS"].split()[0]) / 1024,
        "engine_descriptors": len(list((folder / "fd").iterdir())),
        "engine_threads": int(status["Threads"]),
    }


def faults(before: dict[str, float], after: dict[str, float]) -> list[str]:
    slack, exact = {"resident_mib": GROWTH_MIB, "engine_resident_mib": GROWTH_MIB}, ("restarts", "pages_free_or_cached")
    found = [name for name in before if name not in exact and after[name] > before[name] + slack.get(name, 0)]
    found += [name for name in exact if after[name] != before[name]]
    return [f"{name}: {before[name]} before, {after[name]} after" for name in found]


def run(model: Path, requests: float, clients: int, seed: int) -> dict[str, Any]:
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, herd_server(model, port, clients // 2, data_folder=folder) as server:
        asyncio.run(load(port, WARM, clients, seed + 1))
        before = settled(port, server.pid) | engine(server.pid)
        say(f"before: {before}")
        gc.collect()
        counts = asyncio.run(load(port, int(requests), clients, seed))
        after = settled(port, server.pid) | engine(server.pid)
        say(f"after: {after}")
    wrong = faults(before, after) + [stage for stage in counts if stage not in STAGES]
    asked = {"requests": counts.total(), "left": {stage: counts[stage] for stage in STAGES}, "clients": clients, "seed": seed}
    return left_over("requests that were left: what stays behind", wrong, before, after, model, asked)


def main() -> int:
    return measured(run, "requests", 100_000, 64)


if __name__ == "__main__":
    sys.exit(main())
