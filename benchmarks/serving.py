"""What does serving cost, on top of what the engine does, and beside llama.cpp's server?

    python benchmarks/serving.py [--model PATH] [--streams 16] [--seconds 12] [--pairs 9]
                                 [--what streams,peer,batch,load,shared,overload,many]

The load comes from `wrk` (Debian's package) and OpenAI's client, which are not ours; client, server and engine share the machine's cores.

    streams     `herd serve`: streams of a completion, one after another on each connection; then the same model in one process, as many
                sequences, no HTTP, while wrk drains a replay of the same bytes at the same pace. Besides: CPU time of the web process, and
                of the thread that drives the model without the model's own, for each token
    peer        llama-cpp-python's own server with the same request
    batch       llama.cpp's own batch of as many sequences (`herd bench`)
    load        time to the first token under load
    shared      how much sooner a second request with the same long prompt begins, and one that comes together with the first
    overload    requests come ten times as fast as they can be answered: refusals, tokens against the peak, and how soon service is normal
                after. The peak is that of as many requests as the server lets in, which come one after another as those of the overload do:
                answers that all begin and end together are 5 % faster, their prompts share steps. Both are counted while all clients ask
    many        1,000 open streams, half of them sampled, each with the log-probabilities of its solo run

Each takes less than a minute, but overload, which takes three. Tokens of streams are counted by their bytes: each answer is the same
greedy text. Prints one JSON line per figure; keep them in benchmarks/results/. Figures that compare two pieces need both in one run.
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
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from record import commit, figure, machine, say, sha256

PROMPT = "Once upon a time"
TOKENS = 128
TICKS = os.sysconf("SC_CLK_TCK")
APART_MS = 1200  # between two requests of a client: of 62 clients some 46 wait for an answer
BEAT_S = 0.25  # how often a model's process tells what it did
SOLO = 100  # of many streams, as many are compared with their solo runs
KINDS = 50  # different prompts among them


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


def wrk(url: str, body: dict[str, Any], streams: int, seconds: float, pause_ms: int | None = None) -> float:
    """Bytes per second that arrive. pause_ms: about so long before each connection asks again; then some may be refused."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        text = json.dumps(json.dumps(body))
        script.write(f'wrk.method = "POST"\nwrk.body = {text}\nwrk.headers["Content-Type"] = "application/json"\n')
        script.write('done = function(s) io.write(string.format("BYTES %d %d %d\\n", s.bytes, s.duration, s.errors.status)) end\n')
        if pause_ms is not None:
            script.write(f"function delay() return {pause_ms} * (0.5 + math.random()) end\n")
        script.flush()
        command = ["wrk", "-t1", f"-c{streams}", f"-d{int(seconds)}s", "--timeout", "120s", "-s", script.name, url]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"BYTES (\d+) (\d+) (\d+)", said)
    assert found is not None and (found[3] == "0" or pause_ms is not None), said
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


def refusals(url: str, until: Callable[[], bool]) -> list[float]:
    """Seconds that each refusal takes, of one client that asks ten times a second."""
    found = []
    while not until():
        began = time.perf_counter()
        try:
            whole_answer(f"{url}/v1/completions", asked(1, stream=False))
        except urllib.error.HTTPError as problem:
            found.append(time.perf_counter() - began)
            assert problem.code in (429, 503) and float(problem.headers["retry-after"]) > 0, problem.code
        time.sleep(0.1)
    return found


def shared_prompt(url: str) -> tuple[float, float, float]:
    """Seconds to the first token of a prompt of some 4,000 tokens: the first time, the second, and of the later of two that come together
    with another such prompt."""
    from concurrent.futures import ThreadPoolExecutor

    def timed(text: str) -> float:
        began = time.perf_counter()
        whole_answer(f"{url}/v1/completions", asked(1, text, stream=False))
        return time.perf_counter() - began

    def long_text() -> str:
        return f"{time.time()} " + " ".join(f"Fact {number} is that {number * 7} follows." for number in range(330))

    text = long_text()
    cold, warm = timed(text), timed(text)
    text = long_text()
    with ThreadPoolExecutor(2) as two:
        return cold, warm, max(two.map(timed, [text, text]))


def many_streams(url: str, count: int, tokens: int) -> tuple[int, int, float]:
    """Opens `count` streams at once: how many were complete, how many of those had the very log-probabilities of their solo runs, and
    seconds for all."""
    import httpx

    def body(number: int) -> dict[str, Any]:
        drawn = {"temperature": 1.0, "seed": number} if number % 2 else {"temperature": 0.0}
        return asked(tokens, f"{number % KINDS} {PROMPT}", logprobs=1, ignore_eos=True, **drawn)

    def said(data: bytes) -> list[Any]:
        lines = [json.loads(line[6:]) for line in data.split(b"\n") if line.startswith(b"data: {")]
        choices = [choice for line in lines for choice in line["choices"]]
        return [(choice["text"], choice["logprobs"]["token_logprobs"]) for choice in choices if choice["logprobs"]]

    alone = {}
    for number in range(0, count, count // SOLO or 1):
        alone[number] = said(whole_answer(f"{url}/v1/completions", body(number))[0])

    async def run() -> list[bytes]:
        async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=count)) as client:

            async def one(number: int) -> bytes:
                reply = await client.post(f"{url}/v1/completions", json=body(number))
                return reply.content if reply.status_code == 200 else b""

            return list(await asyncio.gather(*map(one, range(count))))

    began = time.perf_counter()
    found = asyncio.run(run())
    seconds = time.perf_counter() - began
    same = sum(said(found[number]) == expected for number, expected in alone.items())
    return sum(data.endswith(b"data: [DONE]\n\n") for data in found), same, seconds


def streams_piece(options: argparse.Namespace, facts: dict[str, Any]) -> None:
    """One round: the server, then the engine alone while a replay is drained."""
    model, streams = options.model, options.streams
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        recorded = Path(folder) / "stream"
        with herd_server(model, port, streams) as server:
            body = asked(ignore_eos=True)
            data, tokens = whole_answer(f"{url}/v1/completions", body)
            recorded.write_bytes(data)
            time.sleep(2 * BEAT_S)
            before, made = cpu_seconds(server.pid), measures(url)
            served = wrk(f"{url}/v1/completions", body, streams, options.seconds) * tokens / len(data)
            web = (cpu_seconds(server.pid) - before) / (served * options.seconds)
            time.sleep(2 * BEAT_S)
            after = measures(url)
        each = (after["scheduling_seconds"] - made["scheduling_seconds"]) / (after["answer_tokens"] - made["answer_tokens"])
        port, pace = free_port(), streams / served
        with process(itself("--replay", port, recorded, pace), f"http://127.0.0.1:{port}"):
            alone = subprocess.Popen(itself("--engine", model, streams, options.seconds), stdout=subprocess.PIPE, text=True)
            wrk(f"http://127.0.0.1:{port}/", body, streams, options.seconds + 4)
            engine = json.loads(alone.communicate()[0])["tokens_per_s"]
    options.served = served
    figure(f"{streams} streams", [served], "tokens/s", facts, engine="herd serve")
    figure(f"{streams} streams", [engine], "tokens/s", facts, engine="herd, no server")
    figure(f"{streams} streams: herd serve / herd, no server", [served / engine], "ratio", facts, engine="herd")
    figure("CPU of the web process for each token", [1e6 * web], "us", facts, engine="herd serve")
    figure("CPU of scheduling for each token", [1e6 * each], "us", facts, engine="herd serve")
    bound = {"value": 60, "what": "what serving may cost"}
    figure("CPU of web process and scheduling for each token", [1e6 * (web + each)], "us", facts, engine="herd serve", bound=bound)


def measures(url: str) -> dict[str, float]:
    """What the server tells of its model since it was loaded."""
    text = urllib.request.urlopen(f"{url}/metrics", timeout=30).read().decode()
    return {name: float(value) for name, value in re.findall(r"^herd_model_(\w+)_total{[^}]*} ([0-9.e+-]+)$", text, re.MULTILINE)}


def peer_piece(options: argparse.Namespace, facts: dict[str, Any]) -> None:
    port = free_port()
    with llama_server(options.model, port, os.cpu_count() or 1):
        place = f"http://127.0.0.1:{port}/v1/completions"
        data, tokens = whole_answer(place, asked())
        rate = wrk(place, asked(), options.streams, options.seconds) * tokens / len(data)
    figure(f"{options.streams} streams", [rate], "tokens/s", facts, engine="llama-cpp-python's server")
    against(options, rate, "llama-cpp-python's server", 2.5, facts)


def batch_piece(options: argparse.Namespace, facts: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "herd", "bench", str(options.model), "--what", "sequences", "--peers", "llama.cpp", "--rounds", "1"]
    lines = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)["figures"]
    name = f"{options.streams} sequences"
    rate = next(each["value"] for each in lines if each.get("engine") == "llama.cpp" and name in each["figure"])
    figure(f"{options.streams} sequences", [rate], "tokens/s", facts, engine="llama.cpp")
    against(options, rate, "llama.cpp's batch", 1.5, facts)


def against(options: argparse.Namespace, rate: float, other: str, bound: float, facts: dict[str, Any]) -> None:
    if options.served is not None:
        wanted = {"value": bound, "what": "the least that it should be"}
        figure(f"{options.streams} streams: herd serve / {other}", [options.served / rate], "ratio", facts, engine="herd", bound=wanted)


def load_piece(options: argparse.Namespace, facts: dict[str, Any]) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with herd_server(options.model, port, options.streams):
        whole_answer(f"{url}/v1/completions", asked(4))
        times = sorted(first_tokens(url, options.streams, options.seconds))
    middle, late = statistics.median(times), times[int(0.99 * (len(times) - 1))]
    figure(f"first token, {options.streams} streams, median", [middle], "s", facts, engine="herd serve")
    bound = {"value": 3 * middle, "what": "three times the median"}
    figure(f"first token, {options.streams} streams, 99th percentile", [late], "s", facts, engine="herd serve", bound=bound)


def shared_piece(options: argparse.Namespace, facts: dict[str, Any]) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with herd_server(options.model, port, options.streams):
        whole_answer(f"{url}/v1/completions", asked(4))
        cold, warm, together = shared_prompt(url)
    figure("first token, prompt of some 4,000 tokens", [cold], "s", facts, engine="herd serve")
    figure("the same prompt again", [warm], "s", facts, engine="herd serve", bound={"value": cold / 10, "what": "a tenth of the first"})
    figure("two of the same prompt at once, the later", [together], "s", facts, engine="herd serve")


def overload_piece(options: argparse.Namespace, facts: dict[str, Any]) -> None:
    """Clients of which as many wait for answers as are let in (32 in steps, half as many in the queue); then so many more, as often, that
    ten times the requests come that were answered before; and one that times its refusals. `--pairs` times, in turn. Tokens are counted
    from when all clients have asked for the first time; what the generator costs is told beside, as it takes from the same cores."""
    from concurrent.futures import ThreadPoolExecutor

    streams, port = options.streams, free_port()
    url = f"http://127.0.0.1:{port}"
    place, body = f"{url}/v1/completions", asked(64, ignore_eos=True)
    peaks: list[float] = []
    ratios: list[float] = []
    refused: list[float] = []
    seconds = 0.3 * options.seconds
    with herd_server(options.model, port, streams, max_requests=str(3 * streams)) as server, ThreadPoolExecutor(2) as beside:
        whole_answer(place, asked(4))
        before = timed_answer(url)
        for _ in range(options.pairs):
            peaks.append(rate_under(Load(place, body, 4 * streams - 2, APART_MS), url, seconds))
            pause_ms = int(1000 * 20 * streams / (10 * peaks[-1] / 64))
            load = Load(place, body, 20 * streams, pause_ms)
            overload = beside.submit(rate_under, load, url, seconds)
            time.sleep(1.5 * pause_ms / 1000)
            web, asking = cpu_seconds(server.pid), time.perf_counter()
            refused += refusals(url, overload.done)
            web = (cpu_seconds(server.pid) - web) / (time.perf_counter() - asking)
            ratios.append(overload.result() / peaks[-1])
        began = time.perf_counter()
        while timed_answer(url) > 1.5 * before and time.perf_counter() - began < 30:
            pass
        normal = time.perf_counter() - began
    bound = {"value": 0.05, "what": "the longest that it should take"}
    figure("ten times too many: a refusal takes", refused, "s", facts, engine="herd serve", worst=round(max(refused), 4), bound=bound)
    shares = {"web_process": round(web, 3), "generator": round(load.cpu_share, 3)}
    bound = {"value": 0.95, "what": "the least that it should be"}
    figure("ten times too many: tokens against the peak", ratios, "ratio", facts, engine="herd serve", cpu_of_a_core=shares, bound=bound)
    figure("ten times too many: service is normal again after", [normal], "s", facts, engine="herd serve")


class Load:
    """Clients that ask over and over for a while, each after a pause. `cpu_share`: of one core, when it is over."""

    def __init__(self, place: str, body: dict[str, Any], clients: int, pause_ms: int) -> None:
        self.place, self.body, self.clients, self.pause_ms = place, body, clients, pause_ms
        self.begin_s = 0.5 + 1.5 * pause_ms / 1000
        self.cpu_share = 0.0

    def run(self, seconds: float) -> None:
        before, began = os.times(), time.perf_counter()
        wrk(self.place, self.body, self.clients, self.begin_s + seconds + 1, self.pause_ms)
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        self.cpu_share = used / (time.perf_counter() - began)


def rate_under(load: Load, url: str, seconds: float) -> float:
    """Tokens per second while all clients of a load ask."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as beside:
        running = beside.submit(load.run, seconds)
        time.sleep(load.begin_s)
        tokens, began = tokens_at(url)
        time.sleep(seconds - 2 * BEAT_S)
        later, ended = tokens_at(url)
        running.result()
    return (later - tokens) / (ended - began)


def tokens_at(url: str) -> tuple[float, float]:
    """How many tokens were made, and when that was so: the model's process tells it a few times a second."""
    known = measures(url)["answer_tokens"]
    for _ in range(100):
        time.sleep(0.01)
        if (found := measures(url)["answer_tokens"]) != known:
            break
    return found, time.perf_counter()


def timed_answer(url: str) -> float:
    began = time.perf_counter()
    whole_answer(f"{url}/v1/completions", asked(16))
    return time.perf_counter() - began


def many_piece(options: argparse.Namespace, facts: dict[str, Any]) -> None:
    port = free_port()
    with herd_server(options.model, port, 32, max_requests="2000", max_connections="2000") as server:
        complete, same, seconds = many_streams(f"http://127.0.0.1:{port}", 1000, 8)
        assert server.poll() is None
    figure("1,000 open streams: complete", [complete], "streams", facts, engine="herd serve", seconds=round(seconds, 1))
    figure(f"1,000 open streams: with the bits of their solo runs, of {SOLO} compared", [same], "streams", facts, engine="herd serve")


PIECES: dict[str, Callable[[argparse.Namespace, dict[str, Any]], None]] = {
    "streams": streams_piece,
    "peer": peer_piece,
    "batch": batch_piece,
    "load": load_piece,
    "shared": shared_piece,
    "overload": overload_piece,
    "many": many_piece,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--pairs", type=int, default=9, help="peaks and overloads, in turn; single ones scatter by a tenth")
    parser.add_argument("--what", default=",".join(PIECES), help="pieces, with commas between")
    parser.add_argument("--served", type=float, help="what `streams` found before, for pieces that compare with it")
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
        options.model = options.model.resolve()
        facts = {"machine": machine(), "threads": os.cpu_count(), "commit": commit()}
        facts |= {"model": options.model.name, "sha256": sha256(options.model)}
        for name in options.what.split(","):
            say(name)
            PIECES[name](options, facts)


if __name__ == "__main__":
    main()
