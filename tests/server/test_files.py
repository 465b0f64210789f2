"""`/v1/files` with OpenAI's own client and with forms that no client sends."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import openai
import pytest

from herd.server.keys import Keys, create

if TYPE_CHECKING:
    from server.conftest import Running

Serve = Callable[..., "Running"]


def client_of(server: Running, key: str = "any") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def test_a_file_is_brought_described_listed_fetched_and_deleted(serve: Serve, tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_000
    server = serve(data_folder=tmp_path)
    with client_of(server) as client:
        made = client.files.create(file=("data.jsonl", content), purpose="batch")
        assert (made.bytes, made.filename, made.purpose, made.status) == (len(content), "data.jsonl", "batch", "processed")
        assert made.expires_at is not None and made.expires_at - time.time() > 29 * 86_400
        assert client.files.retrieve(made.id) == made and client.files.list().data == [made]
        assert client.files.content(made.id).read() == content
        assert client.files.delete(made.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.content(made.id)
        assert not any(content[:256] in path.read_bytes() for path in tmp_path.iterdir())


def test_files_are_listed_in_pages_and_by_purpose(server: Running) -> None:
    with client_of(server) as client:
        made = [client.files.create(file=(f"{number}", b"x"), purpose="user_data" if number % 2 else "batch").id for number in range(5)]
        assert [each.id for each in client.files.list(limit=2)] == made[::-1]
        assert [each.id for each in client.files.list(order="asc", limit=2).data] == made[:2]
        assert [each.id for each in client.files.list(purpose="user_data")] == [made[3], made[1]]
        with pytest.raises(openai.BadRequestError):
            client.files.list(limit=0)


def test_a_file_may_go_by_itself(server: Running) -> None:
    with client_of(server) as client:
        made = client.files.create(file=("a", b"x"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600})
        assert made.expires_at is not None and made.expires_at - made.created_at == 3600
        with pytest.raises(openai.BadRequestError, match="3600"):
            client.files.create(file=("a", b"x"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 1})
        assert client.files.create(file=("a", b"x"), purpose="user_data").expires_at is None


def test_another_keys_files_look_as_if_they_were_not_there(serve: Serve, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    mine, yours = create(keys, "mine")[0], create(keys, "yours")[0]
    server = serve(None, None, Keys(keys), need_key=True, data_folder=tmp_path)
    with client_of(server, mine) as me, client_of(server, yours) as you:
        made = me.files.create(file=("a", b"x"), purpose="batch")
        for act in (you.files.retrieve, you.files.content, you.files.delete):
            with pytest.raises(openai.NotFoundError):
                act(made.id)
        assert you.files.list().data == [] and len(me.files.list().data) == 1
        with pytest.raises(openai.BadRequestError, match="no file"):
            you.batches.create(input_file_id=made.id, endpoint="/v1/completions", completion_window="24h")


def test_a_file_above_the_limits_is_refused_and_nothing_of_it_stays(serve: Serve, tmp_path: Path) -> None:
    server = serve(data_folder=tmp_path, max_upload_bytes=3 << 20, max_kept_bytes=2 << 20)
    with client_of(server) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            client.files.create(file=("a", b"x" * (4 << 20)), purpose="batch")
        assert caught.value.status_code == 413
        with pytest.raises(openai.APIStatusError, match="may keep here") as caught:
            client.files.create(file=("a", b"x" * (5 << 19)), purpose="batch")
        assert caught.value.status_code == 413
        client.files.create(file=("a", b"x" * (1 << 20)), purpose="batch")


PART = '--b\r\ncontent-disposition: form-data; name="{name}"{more}\r\n\r\n{value}\r\n'
FILE_PART = PART.format(name="file", more='; filename="a"', value="x")
PURPOSE = PART.format(name="purpose", more="", value="batch")
END = "--b--\r\n"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (PURPOSE + END, 400, "file is missing"),
        (FILE_PART + END, 400, "purpose is missing"),
        (FILE_PART + PART.format(name="purpose", more="", value="assistants") + END, 400, "purpose is 'assistants'"),
        (FILE_PART + FILE_PART + PURPOSE + END, 400, "file is given twice"),
        (FILE_PART + PURPOSE + PURPOSE + END, 400, "purpose is given twice"),
        (FILE_PART + PURPOSE + PART.format(name="purpos", more="", value="x") + END, 400, "did you mean 'purpose'"),
        (FILE_PART + PURPOSE, 400, "broken"),
        ("--c\r\n", 400, "broken"),
        ("", 400, "broken"),
        (PART.format(name="file", more='; filename="a"', value="") + PURPOSE + END, 400, "empty"),
        (PART.format(name="file", more=f'; filename="{"n" * 600}"', value="x") + PURPOSE + END, 400, "600 characters"),
        (FILE_PART + PART.format(name="purpose", more="", value="x" * 2000) + END, 400, "more than 1024 bytes"),
        (FILE_PART + "".join(PART.format(name=f"f{i}", more="", value="x") for i in range(30)) + END, 400, "more than 16 fields"),
    ],
)
def test_forms_that_are_none_are_refused(server: Running, body: str, status: int, said: str) -> None:
    headers = {"content-type": "multipart/form-data; boundary=b"}
    response = httpx.post(f"{server.url}/v1/files", content=body.encode(), headers=headers)
    assert response.status_code == status and said in response.json()["error"]["message"], response.text
    assert httpx.get(f"{server.url}/v1/files").json()["data"] == []


def test_what_is_no_form_is_refused(server: Running) -> None:
    response = httpx.post(f"{server.url}/v1/files", json={"purpose": "batch"})
    assert response.status_code == 415 and "multipart" in response.json()["error"]["message"]


def test_an_upload_that_breaks_off_leaves_nothing(serve: Serve, tmp_path: Path) -> None:
    server = serve(data_folder=tmp_path)
    length = "content-type: multipart/form-data; boundary=b\r\ncontent-length: 9000000\r\n\r\n"
    head = f"POST /v1/files HTTP/1.1\r\nhost: 127.0.0.1:{server.port}\r\n{length}"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + PART.format(name="file", more='; filename="a"', value="y" * 3_000_000).encode())
        while not used(server):
            time.sleep(0.02)
    for _ in range(500):
        if not used(server):
            break
        time.sleep(0.02)
    assert used(server) == 0


def test_another_server_that_starts_on_the_folder_leaves_uploads_alone(serve: Serve, tmp_path: Path) -> None:
    first = serve(data_folder=tmp_path)

    def content() -> Iterator[bytes]:
        yield PART.format(name="file", more='; filename="a"', value="y" * 3_000_000).encode()[:-2]
        serve(data_folder=tmp_path)
        yield ("\r\n" + PURPOSE + END).encode()

    headers = {"content-type": "multipart/form-data; boundary=b"}
    made = httpx.post(f"{first.url}/v1/files", content=content(), headers=headers).json()
    assert made["bytes"] == 3_000_000 and len(httpx.get(f"{first.url}/v1/files/{made['id']}/content").content) == 3_000_000


def used(server: Running) -> int:
    return server.house.keeping.store._read(lambda tables: tables.used("local"))
