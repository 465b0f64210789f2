"""`herd keys`: what is printed, what is kept, and what is refused."""

from __future__ import annotations

import json
import time

import pytest

from cli.running import invoke
from herd.server.keys import Keys, keys_file, read_keys


def test_a_key_is_printed_once_and_works() -> None:
    made = invoke("keys", "create", "alice")
    assert made.exit_code == 0 and made.stdout.startswith("herd-") and "not shown again" in made.stderr
    found = Keys(keys_file()).find(made.stdout.strip())
    assert found is not None and found.name == "alice"
    listed = invoke("keys", "list")
    assert (
        "alice" in listed.stdout
        and "never" in listed.stdout
        and made.stdout.strip() not in listed.stdout
        and found.hash not in listed.stdout
    )


def test_limits_are_set_changed_and_lifted() -> None:
    assert invoke("keys", "create", "ci", "--tokens", "1000", "--streams", "2", "--expires", "12h", "--model", "llama-3*").exit_code == 0
    (key,) = read_keys(keys_file())
    assert (key.tokens_per_minute, key.streams, key.requests_per_minute, key.models) == (1000, 2, None, ("llama-3*",))
    assert key.expires is not None and abs(key.expires - time.time() - 12 * 3600) < 60
    changed = invoke("keys", "limit", "ci", "--tokens", "none", "--requests", "5", "--model", "none", "--expires", "2999-01-31")
    assert changed.exit_code == 0 and "5 requests and - tokens a minute, 2 streams, models: all, expires: 2999-01-31" in changed.stdout
    assert invoke("keys", "revoke", key.id).exit_code == 0 and read_keys(keys_file()) == []


def test_keys_as_json_are_whole() -> None:
    made = json.loads(invoke("keys", "create", "alice", "--json").stdout)
    listed = json.loads(invoke("keys", "list", "--json").stdout)
    assert made.pop("key").startswith("herd-") and listed == {"keys": [made]}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("create", "../x"), "cannot be used"),
        (("create", ""), "cannot be used"),
        (("create", "a", "--requests", "0"), "--requests is '0'"),
        (("create", "a", "--requests", "10 apples"), "such as 60 or 10k"),
        (("create", "a", "--tokens", "many"), "--tokens is 'many'"),
        (("create", "a", "--streams", "-1"), "--streams is '-1'"),
        (("create", "a", "--expires", "soon"), "--expires is 'soon'"),
        (("create", "a", "--expires", "2001-01-01"), "is over"),
        (("create", "taken"), "already"),
        (("limit", "taken"), "Nothing is to be changed"),
        (("limit", "takn", "--requests", "1"), "did you mean 'taken'?"),
        (("revoke", "nobody"), "There is no key 'nobody'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(words: tuple[str, ...], said: str) -> None:
    invoke("keys", "create", "taken")
    before = keys_file().read_bytes()
    refused = invoke("keys", *words)
    assert refused.exit_code == 2 and said in refused.stderr and keys_file().read_bytes() == before


def test_a_damaged_file_of_keys_is_named() -> None:
    invoke("keys", "create", "alice")
    keys_file().write_text('{"version": 1, "keys": [{"id": 5}]}')
    for words in (("list",), ("create", "bob"), ("revoke", "alice")):
        refused = invoke("keys", *words)
        assert refused.exit_code == 3 and "not a key" in refused.stderr
    keys_file().write_text('{"version": 2, "keys": []}')
    assert "newer herd" in invoke("keys", "list").stderr


def test_an_empty_list_says_how_to_begin() -> None:
    assert "herd keys create NAME" in invoke("keys", "list").stdout
