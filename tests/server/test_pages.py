"""The built-in pages, as a browser asks for them."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import httpx
import pytest

from herd.family.catalogue import releases
from herd.providers.base import Terms
from herd.server.keys import Keys
from server.conftest import Running
from server.fake_pool import FakePool, FakeService

PAGES = ("/", "/plan")


@pytest.mark.parametrize("path", PAGES)
def test_a_page_names_only_parts_that_this_server_has(server: Running, path: str) -> None:
    page = httpx.get(server.url + path)
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert named and all(each.startswith("/") for each in named), "nothing comes from elsewhere"
    for each in named:
        assert httpx.get(server.url + each).status_code == 200, each


@pytest.mark.parametrize("path", PAGES)
def test_a_page_may_run_its_own_scripts_and_no_others(server: Running, path: str) -> None:
    page = httpx.get(server.url + path)
    policy = page.headers["content-security-policy"]
    assert "script-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=|<style", page.text), "nothing inline, which the policy forbids"


def test_what_the_licences_of_models_want_shown_is_on_the_page_and_in_the_list_of_models(serve: Any) -> None:
    """Only on the page to chat with; each badge once, whatever the models are called here."""
    assert "Built with" not in httpx.get(serve().url + "/").text
    terms = Terms(licence="Llama 3.2 Community License", badge="Built with Llama", notice="Llama 3.2 is licensed under ...")
    free = Terms(licence="Apache License 2.0")
    pool = FakePool(FakeService("poems"), FakeService("prose"), FakeService("free"), FakeService("unknown"))
    pool.terms = {"poems": terms, "prose": terms, "free": free}
    url = serve(pool).url
    assert httpx.get(url + "/").text.count('<p class="badge">Built with Llama</p></header>') == 1
    assert "Built with" not in httpx.get(url + "/plan").text
    listed = {each["id"]: each["licence"] for each in httpx.get(url + "/v1/models").json()["data"]}
    assert listed == {"poems": asdict(terms), "prose": asdict(terms), "free": asdict(free), "unknown": None}
    assert httpx.get(url + "/v1/models/poems").json()["licence"]["badge"] == "Built with Llama"


def test_pages_are_given_out_without_a_key_and_what_they_ask_for_is_not(serve: Any, tmp_path: Any) -> None:
    running = serve(keys=Keys(tmp_path / "keys.json"), need_key=True)
    assert httpx.get(running.url + "/").status_code == 200
    assert httpx.get(running.url + "/v1/models").status_code == 401


def test_the_choices_are_the_catalogue(server: Running) -> None:
    choices = httpx.get(server.url + "/plan/choices").json()
    names = [each["name"] for each in choices["models"]]
    assert "llama-3.1-8b-instruct" in names and "llama-4-scout-instruct" in names
    assert set(names) <= set(releases()) and all(releases()[name].is_released for name in names)
    assert "q4_0" in choices["quants"] and any(each["name"] == "h100-sxm" for each in choices["devices"])


def test_a_plan_is_the_one_of_herd_plan(server: Running) -> None:
    query = {"model": "llama-3.1-8b-instruct", "quant": "q4_0", "context": "32768", "users": "10", "device": "h100-sxm"}
    answer = httpx.get(server.url + "/plan/answer", params=query, timeout=60)
    assert answer.status_code == 200 and "<svg" in answer.text
    assert "Plan for llama-3.1-8b-instruct" in answer.text and "10 users" in answer.text and "32,768" in answer.text
    assert "<script" not in answer.text and " style=" not in answer.text


def test_every_model_that_is_offered_has_a_plan(server: Running) -> None:
    with httpx.Client(base_url=server.url, timeout=120) as client:
        for each in client.get("/plan/choices").json()["models"]:
            query = {"model": each["name"], "context": "512", "prompt_tokens": "64", "device": "h100-sxm"}
            answer = client.get("/plan/answer", params=query)
            assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({}, "model is missing"),
        ({"model": "llama-9"}, "llama-9"),
        ({"model": "llama-3.1-8b-instruct", "context": "1M"}, "131072|131,072"),
        ({"model": "llama-3.1-8b-instruct", "users": "-3"}, "users"),
        ({"model": "llama-3.1-8b-instruct", "users": "99999999999999999999"}, "from 1 to 1,000,000,000"),
        ({"model": "llama-3.1-8b-instruct", "quant": "q4_9"}, "q4_9"),
        ({"model": "llama-3.1-8b-instruct", "device": "h900"}, "h900"),
        ({"model": "<script>alert(1)</script>"}, "script"),
    ],
)
def test_an_impossible_plan_is_an_error_that_says_why(server: Running, query: dict[str, str], said: str) -> None:
    answer = httpx.get(server.url + "/plan/answer", params=query)
    assert answer.status_code in (400, 404) and answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert re.search(said, error["message"]) and (error["param"] in query or error["param"] == "model" or "quant" in query)
