"""What does serving cost, on top of what the engine does, and beside llama.cpp's server?

    python benchmarks/serving.py [--model PATH] [--streams 16] [--seconds 12] [--rounds 5]

The load comes from `wrk` (Debian's package), which is not ours; client, server and engine share the machine's cores. In alternation:

    server       `herd serve`: streams of a completion, one after another on each connection
    engine       the same model in one process, as many sequences, no HTTP, while wrk drains a replay of the same bytes at the same pace
    llama.cpp    llama-cpp-python's own server with the same request

Tokens are counted by the bytes of the streams: each answer is the same greedy text. Besides, on the herd server: CPU time of the web
process for each token, time to the first token under load, refusals when ten times as many ask as are let in, and how much sooner
a second request with the same long prompt begins. Prints one JSON line per figure; keep them in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from record import commit, figure, machine, say, sha256

PROMPT = "Once upon a time"
TOKENS = 128
TICKS = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def process(command: list[str], url: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers at `url` until the block ends."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **environment}) as started:
        try:
            for _ in range(600):
                with suppress(OSError):
                    urllib.request.urlopen(url, timeout=5).close()
                    break
                assert started.poll() is None, f"{command[:4]} ended with {started.returncode}"
                time.sleep(0.1)
            yield started
        finally:
            started.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                started.wait(20)
            started.kill()


def herd_server(model: Path, port: int, streams: int, **settings: str) -> Any:
    chosen = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "herd", "serve", f"m={model}", "--port", str(port), "--quiet", "--parallel", str(streams), *chosen]
    return process(command, f"http://127.0.0.1:{port}/ready")


def llama_server(model: Path, port: int, threads: int) -> Any:
    options = ["--model", str(model), "--port", str(port), "--n_threads", str(threads), "--n_ctx", "2048", "--interrupt_requests", "False"]
    return process([sys.executable, "-m", "llama_cpp.server", *options], f"http://127.0.0.1:{port}/v1/models")


def asked(tokens: int = TOKENS, prompt: str = PROMPT, **more: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0.0, "stream": True, **more}


def whole_answer(url: str, body: dict[str, Any]) -> tuple[bytes, int]:
    """One answer's bytes, and its number of tokens."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        data: bytes = reply.read()
    return data, sum(1 for line in data.split(b"\n") if line.startswith(b"data: {"))


def wrk(url: str, body: dict[str, Any], streams: int, seconds: float) -> float:
    """Bytes per second that arrive."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        text = json.dumps(json.dumps(body))
        script.write(f'wrk.method = "POST"\nwrk.body = {text}\nwrk.headers["Content-Type"] = "application/json"\n')
        script.write('done = function(s) io.write(string.format("BYTES %d %d %d\\n", s.bytes, s.duration, s.errors.status)) end\n')
        script.flush()
        command = ["wrk", "-t1", f"-c{streams}", f"-d{int(seconds)}s", "--timeout", "120s", "-s", script.name, url]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"BYTES (\d+) (\d+) (\d+)", said)
    assert found is not None and found[3] == "0", said
    return int(found[1]) / (int(found[2]) / 1e6)


def cpu_seconds(process_id: int) -> float:
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Replay(asyncio.Protocol):
    """Answers whatever is asked with recorded bytes, a piece for each token, at a given pace."""

    def __init__(self, pieces: list[bytes], pause_s: float) -> None:
        self.pieces, self.pause_s = pieces, pause_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.number = 0

    def data_received(self, data: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        self.transport.write(head)
        self._next()

    def _next(self) -> None:
        if self.transport.is_closing():
            return
        if self.number == len(self.pieces):
            self.transport.write(b"0\r\n\r\n")
            self.number = 0
            return
        piece = self.pieces[self.number]
        self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.number += 1
        asyncio.get_running_loop().call_later(self.pause_s, self._next)


def replay(port: int, recorded: Path, pause_s: float) -> None:
    """Serves a recorded stream until it is killed."""
    pieces = [piece + b"\n\n" for piece in recorded.read_bytes().split(b"\n\n") if piece]

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: Replay(pieces, pause_s), "127.0.0.1", port)
        await server.serve_forever()

    asyncio.run(run())


def engine_alone(model: Path, streams: int, seconds: float) -> None:
    """Prints tokens per second of the engine without anything around it, and the CPU time that it spends beside the backend for each."""
    import herd
    from herd.engine.request import Request
    from herd.sampling.params import SamplingParams

    with herd.load(model, parallel=streams) as loaded:
        engine = loaded.provider.engine
        native = [0.0]
        step = engine.backend.step

        def timed(plan: Any) -> Any:
            before = time.thread_time()
            try:
                return step(plan)
            finally:
                native[0] += time.thread_time() - before

        engine.backend.step = timed  # type: ignore[method-assign]
        prompt = loaded.tokenizer.encode(PROMPT)

        def submit() -> None:
            engine.submit(Request(tokens=prompt, sampling=SamplingParams(temperature=0.0), max_tokens=TOKENS, stop_ids=()))

        for _ in range(streams):
            submit()
        for _ in range(20):
            engine.step()
        tokens, native[0], began, used = 0, 0.0, time.perf_counter(), time.thread_time()
        while time.perf_counter() - began < seconds:
            for progress in engine.step():
                tokens += progress.token is not None
                if progress.is_last:
                    submit()
        beside = time.thread_time() - used - native[0]
        print(json.dumps({"tokens_per_s": tokens / (time.perf_counter() - began), "scheduler_s": beside / tokens}))


def itself(*arguments: object) -> list[str]:
    return [sys.executable, str(Path(__file__)), *map(str, arguments)]


def first_tokens(url: str, streams: int, seconds: float) -> list[float]:
    """Seconds to the first piece of each of many answers, `streams` at a time, by the official client."""
    from openai import AsyncOpenAI

    async def run() -> list[float]:
        client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
        found: list[float] = []
        end = time.perf_counter() + seconds

        async def ask(number: int) -> None:
            while time.perf_counter() < end:
                began = time.perf_counter()
                prompt = f"{number} {len(found)} {PROMPT}"
                stream = await client.completions.create(model="m", prompt=prompt, max_tokens=32, temperature=0.0, stream=True)
                async for _ in stream:
                    found.append(time.perf_counter() - began)
                    break
                async for _ in stream:
                    pass

        await asyncio.gather(*map(ask, range(streams)))
        await client.close()
        return found

    return asyncio.run(run())


def rejections(url: str, clients: int, seconds: float) -> tuple[list[float], int, int]:
    """Many clients that ask again at once: seconds of each refusal, the number of complete answers, and their tokens."""
    import httpx

    async def run() -> tuple[list[float], int, int]:
        refused: list[float] = []
        answered = tokens = 0
        end = time.perf_counter() + seconds

        async def ask(client: httpx.AsyncClient) -> None:
            nonlocal answered, tokens
            while time.perf_counter() < end:
                began = time.perf_counter()
                reply = await client.post(f"{url}/v1/completions", json=asked(32, stream=False))
                if reply.status_code == 200:
                    answered += 1
                    tokens += reply.json()["usage"]["completion_tokens"]
                    continue
                assert reply.status_code in (429, 503) and float(reply.headers["retry-after"]) > 0, reply.text
                refused.append(time.perf_counter() - began)
                await asyncio.sleep(0.5)

        async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=clients)) as client:
            await asyncio.gather(*(ask(client) for _ in range(clients)))
        return refused, answered, tokens

    return asyncio.run(run())


def shared_prompt(url: str) -> tuple[float, float]:
    """Seconds to the first token of a prompt of some 4,000 tokens, the first time and the second."""
    text = " ".join(f"Fact {number} is that {number * 7} follows." for number in range(330)) + f" {time.time()}"
    found = []
    for _ in range(2):
        began = time.perf_counter()
        whole_answer(f"{url}/v1/completions", asked(1, text, stream=False))
        found.append(time.perf_counter() - began)
    return found[0], found[1]


def measure(options: argparse.Namespace) -> None:
    model, streams = options.model.resolve(), options.streams
    facts = {"machine": machine(), "threads": os.cpu_count(), "commit": commit(), "model": model.name, "sha256": sha256(model)}
    rates: dict[str, list[float]] = {"herd": [], "engine": [], "llama.cpp": []}
    web: list[float] = []
    scheduler: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        recorded = Path(folder) / "stream"
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}")
            port = free_port()
            url = f"http://127.0.0.1:{port}"
            with herd_server(model, port, streams) as server:
                body = asked(ignore_eos=True)
                data, tokens = whole_answer(f"{url}/v1/completions", body)
                recorded.write_bytes(data)
                before = cpu_seconds(server.pid)
                rates["herd"].append(wrk(f"{url}/v1/completions", body, streams, options.seconds) * tokens / len(data))
                web.append((cpu_seconds(server.pid) - before) / (rates["herd"][-1] * options.seconds))
            port, pace = free_port(), streams / rates["herd"][-1]
            command = itself("--replay", port, recorded, pace)
            with process(command, f"http://127.0.0.1:{port}"):
                alone = subprocess.Popen(itself("--engine", model, streams, options.seconds), stdout=subprocess.PIPE, text=True)
                wrk(f"http://127.0.0.1:{port}/", body, streams, options.seconds + 4)
                said = json.loads(alone.communicate()[0])
            rates["engine"].append(said["tokens_per_s"])
            scheduler.append(said["scheduler_s"])
            if not options.alone:
                port = free_port()
                with llama_server(model, port, os.cpu_count() or 1):
                    place = f"http://127.0.0.1:{port}/v1/completions"
                    data, tokens = whole_answer(place, asked())
                    rates["llama.cpp"].append(wrk(place, asked(), streams, options.seconds) * tokens / len(data))
    shown = {"herd": "herd serve", "engine": "herd, no server", "llama.cpp": "llama-cpp-python's server"}
    for name, values in rates.items():
        if values:
            figure(f"{streams} streams", values, "tokens/s", facts, engine=shown[name])
    for name in ("engine", "llama.cpp"):
        if rates[name]:
            ratios = [one / other for one, other in zip(rates["herd"], rates[name], strict=True)]
            figure(f"{streams} streams: herd serve / {shown[name]}", ratios, "ratio", facts, engine="herd")
    figure("CPU of the web process for each token", [1e6 * each for each in web], "us", facts, engine="herd serve")
    figure("CPU of scheduling for each token", [1e6 * each for each in scheduler], "us", facts, engine="herd, no server")
    under_load(model, streams, options.seconds, facts)


def under_load(model: Path, streams: int, seconds: float, facts: dict[str, Any]) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with herd_server(model, port, streams, max_requests=str(2 * streams)):
        whole_answer(f"{url}/v1/completions", asked(4))
        cold, warm = shared_prompt(url)
        figure("first token, prompt of some 4,000 tokens", [cold], "s", facts, engine="herd serve")
        figure("the same prompt again", [warm], "s", facts, engine="herd serve", bound={"value": cold / 10, "what": "a tenth of the first"})
        times = sorted(first_tokens(url, streams, seconds))
        middle, late = statistics.median(times), times[int(0.99 * (len(times) - 1))]
        figure(f"first token, {streams} streams, median", [middle], "s", facts, engine="herd serve")
        figure(f"first token, {streams} streams, 99th percentile", [late], "s", facts, engine="herd serve")
        _, _, peak = rejections(url, 2 * streams, seconds)
        refused, _, tokens = rejections(url, 20 * streams, seconds)
        figure("ten times too many: a refusal takes", sorted(refused), "s", facts, engine="herd serve", worst=round(max(refused), 4))
        figure("ten times too many: tokens against the peak", [tokens / peak], "ratio", facts, engine="herd serve")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="leave llama.cpp out")
    parser.add_argument("--engine", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--replay", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        engine_alone(Path(options.engine[0]), int(options.engine[1]), float(options.engine[2]))
    elif options.replay:
        replay(int(options.replay[0]), Path(options.replay[1]), float(options.replay[2]))
    else:
        if options.model is None:
            from herd.family.finding import find_model

            options.model = find_model("smollm2-135m-instruct").path
        measure(options)


if __name__ == "__main__":
    main()
