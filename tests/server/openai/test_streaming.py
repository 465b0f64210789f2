"""Answers in pieces: OpenAI's client reads them, and the bytes are what the API's description says."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from herd.errors import Busy, ProviderError
from herd.providers.base import Called, Calling, ChatRequest, Failed, Finished, Text, TokenLogprob, Usage
from herd.sampling.stop import StopReason
from herd.server.openai.chunks import ChatChunks, Frame
from herd.server.running import listen
from herd.server.settings import Settings
from herd.text.messages import ToolCall
from server.fake_pool import FakePool, FakeService, Refuse, Wait, words

if TYPE_CHECKING:
    from server.conftest import Running
    from server.openai.conftest import Connect

ASK: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}
HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": 'a "quoted" näme', "system_fingerprint": "f"}


def lines(server: Running, path: str = "/v1/chat/completions", **fields: Any) -> list[str]:
    """What follows `data: ` of each event of a stream."""
    with httpx.stream("POST", f"{server.url}{path}", json={**ASK, "stream": True, **fields}, timeout=20) as reply:
        assert reply.status_code == 200 and reply.headers["content-type"] == "text/event-stream; charset=utf-8"
        return [line.removeprefix("data: ") for line in reply.iter_lines() if line and not line.startswith(":")]


def test_a_stream_has_a_role_then_text_then_a_reason(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**ASK, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant" and deltas[0].content == "" and all(delta.role is None for delta in deltas[1:])
    assert [delta.content for delta in deltas[1:-1]] == ["Hello", " there,", " world."]
    assert deltas[-1].content is None and [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 4 + ["stop"]
    assert {chunk.id for chunk in chunks} == {chunks[0].id} and chunks[0].id.startswith("chatcmpl-")
    assert {(chunk.object, chunk.model, chunk.system_fingerprint) for chunk in chunks} == {("chat.completion.chunk", "fake", "fake-1")}
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_ends_with_done_and_its_first_chunk_has_the_seed(server: Running) -> None:
    said = lines(server, seed=5)
    assert said[-1] == "[DONE]"
    chunks = [json.loads(line) for line in said[:-1]]
    assert chunks[0]["seed"] == 5 and not any("seed" in chunk or "usage" in chunk for chunk in chunks[1:])


def test_usage_comes_last_without_choices_if_it_was_asked_for(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**ASK, stream=True, n=2, stream_options={"include_usage": True}))
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in chunks[:-1])
    last = chunks[-1]
    assert last.choices == [] and last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens) == (7, 6, 13)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_each_piece_tells_the_tokens_so_far_if_it_was_asked_to(server: Running, path: str) -> None:
    asked = {"messages": ASK["messages"]} if "chat" in path else {"prompt": "x"}
    body = {"model": "fake", "stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}, **asked}
    with httpx.stream("POST", f"{server.url}{path}", json=body) as reply:
        chunks = [json.loads(line.removeprefix("data: ")) for line in reply.iter_lines() if line.startswith("data: {")]
    counts = [(chunk["usage"]["prompt_tokens"], chunk["usage"]["completion_tokens"]) for chunk in chunks]
    assert counts == [*([(7, 0)] if "chat" in path else []), (7, 1), (7, 2), (7, 3), (7, 3), (7, 3)]
    assert chunks[-1]["choices"] == []


def test_several_answers_arrive_side_by_side(serve: Callable[..., Running], connect: Connect) -> None:
    def script(request: ChatRequest) -> list[Any]:
        return [Wait(0.2 * (2 - request.choice_index)), *words(f"answer {request.choice_index}")]

    texts: dict[int, str] = {}
    ended: list[int] = []
    for chunk in connect(serve(FakePool(FakeService(script=script)))).chat.completions.create(**ASK, stream=True, n=3):
        (choice,) = chunk.choices
        texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
        if choice.finish_reason is not None:
            ended.append(choice.index)
    assert texts == {index: f"answer {index}" for index in range(3)} and sorted(ended) == [0, 1, 2]


def test_log_probabilities_come_with_their_pieces(client: openai.OpenAI) -> None:
    said = [chunk.choices[0] for chunk in client.chat.completions.create(**ASK, stream=True, logprobs=True, top_logprobs=1)]
    told = [entry for choice in said if choice.logprobs is not None for entry in choice.logprobs.content or ()]
    assert [entry.token for entry in told] == ["Hello", " there,", " world."] and told[0].logprob == -0.5


def test_a_token_without_text_is_told_where_log_probabilities_are_wanted() -> None:
    frame = Frame(HEAD, 1)
    tokens = (TokenLogprob(2, b"<|eot_id|>", -0.1),)
    quiet, told = ChatChunks(frame, 0), ChatChunks(frame, 0, num_top=0)
    assert [len(values(each.push([Text("", tokens)]).decode())) for each in (quiet, told)] == [1, 2], "besides the role"
    assert ChatChunks(frame, 0, num_top=0).push([Text("", ())]).count(b"data:") == 1


def test_pieces_of_calls_are_told_by_index(serve: Callable[..., Running], connect: Connect) -> None:
    script = [
        Text("Let me see."),
        Calling(0, "weather", "call_a", '{"city"'),
        Calling(0, "weather", "call_a", ': "Oslo"}'),
        Called(ToolCall("call_a", "weather", {"city": "Oslo"})),
        Called(ToolCall("call_b", "time", {"zone": "näh"})),
    ]
    tool = {"type": "function", "function": {"name": "weather"}}
    server = serve(FakePool(FakeService(script=script)))
    chunks = list(connect(server).chat.completions.create(**ASK, stream=True, tools=[tool]))  # type: ignore[list-item]
    pieces = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [(piece.index, piece.id, piece.type) for piece in pieces] == [
        (0, "call_a", "function"),
        (0, None, None),
        (1, "call_b", "function"),
    ]
    assert [piece.function.name for piece in pieces if piece.function is not None] == ["weather", None, "time"]
    spelled = ["".join(p.function.arguments or "" for p in pieces if p.function is not None and p.index == index) for index in (0, 1)]
    assert [json.loads(text) for text in spelled] == [{"city": "Oslo"}, {"zone": "näh"}]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_clients_own_stream_reader_puts_calls_together(serve: Callable[..., Running], connect: Connect) -> None:
    script = [Calling(0, "f", "c1", '{"x":'), Calling(0, "f", "c1", " 1}"), Called(ToolCall("c1", "f", {"x": 1}))]
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}, "strict": True}}
    client = connect(serve(FakePool(FakeService(script=script))))
    with client.chat.completions.stream(**ASK, tools=[tool]) as stream:
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or ()
    assert call.function.arguments == '{"x": 1}' and final.choices[0].finish_reason == "tool_calls"


def test_a_call_that_was_cut_off_ends_with_length(serve: Callable[..., Running], connect: Connect) -> None:
    script = [Calling(0, "f", "c1", '{"x":'), Finished(StopReason.LENGTH, Usage(7, 4), 1)]
    tool: Any = {"type": "function", "function": {"name": "f"}}
    chunks = list(connect(serve(FakePool(FakeService(script=script)))).chat.completions.create(**ASK, stream=True, tools=[tool]))
    assert chunks[-1].choices[0].finish_reason == "length"


def test_an_error_in_the_middle_is_the_clients_exception_and_no_done_follows(serve: Callable[..., Running], connect: Connect) -> None:
    server = serve(FakePool(FakeService(script=[Text("Hel"), Failed(ProviderError("engine at 0x7f died"))])))
    heard: list[str] = []
    with pytest.raises(openai.APIError) as caught:
        for chunk in connect(server).chat.completions.create(**ASK, stream=True):
            heard.append(chunk.choices[0].delta.content or "")
    assert "".join(heard) == "Hel" and "0x7f" not in caught.value.message
    said = lines(server)
    assert set(json.loads(said[-1])) == {"error"} and "[DONE]" not in said
    assert server.pool.only.open == 0 and server.pool.used == 0


def test_what_is_wrong_before_the_first_piece_has_a_status_of_its_own(serve: Callable[..., Running], connect: Connect) -> None:
    server = serve(FakePool(FakeService(script=[Wait(0.05), Refuse(Busy("full", retry_after_s=2))])))
    with pytest.raises(openai.RateLimitError):
        connect(server).chat.completions.create(**ASK, stream=True)
    assert server.pool.used == 0


@pytest.mark.parametrize("n", [1, 3])
def test_leaving_a_stream_leaves_its_answers(serve: Callable[..., Running], connect: Connect, n: int) -> None:
    server = serve(FakePool(FakeService(script=[*words("One two"), Wait(30)])))
    stream = connect(server).chat.completions.create(**ASK, stream=True, n=n)
    next(stream)
    assert server.pool.only.open == n
    stream.close()
    wait_until(lambda: server.pool.only.open == 0 and server.pool.used == 0)
    assert server.pool.only.cancelled == n


def test_padded_pieces_have_sizes_that_tell_little(server: Running) -> None:
    said = lines(server, stream_options={"include_obfuscation": True})
    chunks = [json.loads(line) for line in said[:-1]]
    assert all(set(chunk["obfuscation"]) <= {"x"} for chunk in chunks)
    sizes = {len(line.encode()) for line in said[1:4]}
    assert len(sizes) == 1, "words of different lengths"
    assert not any("obfuscation" in json.loads(line) for line in lines(server)[:-1])


def values(text: str) -> list[Any]:
    """The JSON of each event."""
    return [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n") if event]


@pytest.mark.parametrize(
    "text", ["plain", 'a "quote"', "new\nline\r\n", "\u2028\u2029", "\x00\x1f", "🙂é", "</script>", "\\", "data: x\n\n"]
)
def test_any_text_is_one_event_of_valid_json(text: str) -> None:
    for is_padded in (False, True):
        made = ChatChunks(Frame(HEAD, 7, has_usage=True, is_padded=is_padded), 3).push([Text(text)]).decode()
        role, said = values(made)
        assert said["choices"][0] == {"index": 3, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
        assert {key: said[key] for key in HEAD} == HEAD and said["usage"] is None and role["seed"] == 7
        assert made.count("\n") == 4


def test_a_token_costs_microseconds() -> None:
    """Ten times what it takes on an idle machine: what this holds off is a chunk that is built anew for each token."""
    chunks = ChatChunks(Frame(HEAD, 7), 0)
    event = (Text(" word", (TokenLogprob(1, b" word", -0.5),)),)
    best = min(timed(lambda: [chunks.push(event) for _ in range(1000)]) for _ in range(5))
    assert best / 1000 < 30e-6


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def wait_until(holds: Callable[[], bool], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    made = listen(Settings(port=0))
    yield made
    made.close()


def test_connections_are_such_that_small_pieces_leave_at_once(listener: socket.socket) -> None:
    assert listener.proto == socket.IPPROTO_TCP, "asyncio turns off waiting (Nagle's) only for these"
