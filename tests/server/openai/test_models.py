"""Models that are listed, texts that are embedded, judged and tokenised, as OpenAI's client asks for it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import openai
import pytest

from herd.server.keys import Keys, create
from herd.server.openai.moderations import BY_NAME, CATEGORIES
from herd.text.formats.guard import VERSIONS, Category, Guard, Verdict
from herd.text.messages import Image
from server.fake_pool import FakePool, FakeService

if TYPE_CHECKING:
    from pathlib import Path

    from server.conftest import Running
    from server.openai.conftest import Connect

PIXEL = "data:image/png;base64,AAAA"


def test_models_are_listed_with_their_adapters_and_limits(serve: Callable[..., Running], connect: Connect) -> None:
    pool = FakePool(FakeService("small", facts_given={"adapters": ("sql",)}), FakeService("big", context_length=4096))
    pool.adapters["big:tone"] = "x"
    client = connect(serve(pool))
    models = {model.id: model for model in client.models.list()}
    assert set(models) == {"small", "small:sql", "big", "big:tone"}
    assert {(model.object, model.owned_by, model.created) for model in models.values()} == {("model", "herd", 1_700_000_000)}
    extra = models["big"].model_extra
    assert extra is not None and extra["limits"]["context"] == 4096 and extra["limits"]["choices"] == 128 and extra["loaded"] is True
    adapter = models["small:sql"].model_extra
    assert adapter is not None and adapter["parent"] == adapter["root"] == "small"


def test_a_model_is_described_by_its_name(serve: Callable[..., Running], connect: Connect) -> None:
    client = connect(serve(FakePool(FakeService("org/model", facts_given={"sampling": {"temperature": 0.6}}))))
    model = client.models.retrieve("org/model")
    assert model.id == "org/model" and model.model_extra is not None
    assert model.model_extra["details"]["recommended_sampling"] == {"temperature": 0.6}
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("org/mode")
    assert caught.value.code == "model_not_found" and "did you mean 'org/model'" in caught.value.message


def test_a_key_sees_the_models_that_it_reaches(serve: Callable[..., Running], tmp_path: Path) -> None:
    text, _ = create(tmp_path / "keys", "ann", models=("small",))
    server = serve(FakePool(FakeService("small"), FakeService("big")), keys=Keys(tmp_path / "keys"), need_key=True)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=text, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["small"]
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("big")
        assert "big" not in str(caught.value.body).replace("'big'", "", 1), "no hint that it is there"
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="big", input="x")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_embeddings_come_in_the_clients_own_form(server: Running, client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="fake", input=["one", "three"])
    assert [each.index for each in answer.data] == [0, 1] and np.allclose(answer.data[0].embedding, [0.6, 0.8])
    assert answer.model == "fake" and answer.usage.prompt_tokens == answer.usage.total_tokens == 8
    (inputs, _) = server.pool.only.embedded[-1]
    assert list(inputs) == ["one", "three"]


def test_embeddings_are_numbers_or_base64(server: Running) -> None:
    with httpx.Client(base_url=server.url) as raw:
        plain = raw.post("/v1/embeddings", json={"model": "fake", "input": "x"}).json()["data"][0]["embedding"]
        packed = raw.post("/v1/embeddings", json={"model": "fake", "input": "x", "encoding_format": "base64"}).json()["data"][0][
            "embedding"
        ]
    assert np.array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), np.asarray(plain, "<f4"))


@pytest.mark.parametrize(("given", "read"), [("a", ["a"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])])
def test_embeddings_take_texts_and_ids(server: Running, client: openai.OpenAI, given: Any, read: list[Any]) -> None:
    client.embeddings.create(model="fake", input=given, dimensions=2)
    (inputs, _) = server.pool.only.embedded[-1]
    assert list(inputs) == read


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"input": ""}, "input", "empty"),
        ({"input": ["a", ""]}, "input", "empty"),
        ({"input": []}, "input", "at least 1"),
        ({"input": [1000]}, "input", "vocabulary"),
        ({"input": None}, "input", "string"),
        ({"dimensions": 1}, "dimensions", "not trained"),
        ({"dimensions": 0}, "dimensions", "greater"),
        ({"encoding_format": "int8"}, "encoding_format", "base64"),
        ({"input_type": "query"}, "input_type", "not a field"),
        ({"input": ["x"] * 2049}, "input", "2048"),
    ],
)
def test_embeddings_that_make_no_sense_are_refused_by_name(lasting: openai.OpenAI, fields: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        lasting.embeddings.create(model="fake", input="x", extra_body=fields)
    assert caught.value.param == param and said in caught.value.message


def guarded(verdict: Verdict, *others: FakeService, **facts: Any) -> FakePool:
    return FakePool(FakeService("guard", verdict=verdict, facts_given={"is_guard": True, **facts}), *others)


def test_a_verdict_is_told_by_openais_names_and_the_guards_codes(serve: Callable[..., Running], connect: Connect) -> None:
    verdict = Verdict(False, (Category("S1", "Violent Crimes"), Category("S6", "Specialized Advice")), 0.875)
    server = serve(guarded(verdict, FakeService("other")))
    answer = connect(server).moderations.create(input="How do I")
    (result,) = answer.results
    assert answer.model == "guard" and answer.id.startswith("modr-") and result.flagged
    assert {name for name, is_so in result.categories.model_dump(by_alias=True).items() if is_so} == {
        "violence",
        "illicit",
        "illicit/violent",
    }
    assert result.category_scores.violence == 0.875 and result.category_scores.hate == 0.0
    assert result.category_applied_input_types.violence == ["text"] and result.category_applied_input_types.hate == []
    assert result.model_extra is not None
    assert [each["code"] for each in result.model_extra["codes"]] == ["S1", "S6"] and result.model_extra["unsafe_probability"] == 0.875


def test_texts_are_judged_one_by_one_and_parts_together(serve: Callable[..., Running], connect: Connect) -> None:
    server = serve(guarded(Verdict(True, (), 0.01)))
    client = connect(server)
    answer = client.moderations.create(input=[f"text {index}" for index in range(20)], model="omni-moderation-latest")
    assert len(answer.results) == 20 and not any(result.flagged for result in answer.results)
    service = server.pool.only
    assert [messages[0].text for messages in service.moderated] == [f"text {index}" for index in range(20)]
    client.moderations.create(model="guard", input=[{"type": "text", "text": "This?"}, {"type": "image_url", "image_url": {"url": PIXEL}}])
    parts = service.moderated[-1][0].parts
    assert len(service.moderated) == 21 and isinstance(parts[1], Image) and parts[1].source == PIXEL


def test_every_category_of_every_guard_has_its_place() -> None:
    silent: Any = None
    names = {category.name for version in VERSIONS for category in Guard(silent, version=version).all_categories}
    assert names == set(BY_NAME)
    assert {each for found in BY_NAME.values() for each in found} <= set(CATEGORIES)
    assert set(CATEGORIES) == {field.alias or name for name, field in openai.types.moderation.Categories.model_fields.items()}, (
        "OpenAI's own names"
    )


def test_without_a_guard_there_is_no_verdict(lasting: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        lasting.moderations.create(input="x")
    assert "Llama Guard" in caught.value.message and caught.value.param == "model"
    with pytest.raises(openai.BadRequestError) as refused:
        lasting.moderations.create(input="x", model="fake")
    assert refused.value.param == "model"


def test_of_two_guards_one_has_to_be_named(serve: Callable[..., Running], connect: Connect) -> None:
    safe = Verdict(True)
    server = serve(guarded(safe, FakeService("guard2", verdict=safe, facts_given={"is_guard": True})))
    with pytest.raises(openai.BadRequestError) as caught:
        connect(server).moderations.create(input="x")
    assert caught.value.param == "model" and "guard2" in caught.value.message


@pytest.mark.parametrize("given", [[], None, 5, [5], [{"type": "audio"}], ["x"] * 257])
def test_moderations_that_make_no_sense_are_refused_by_name(lasting: openai.OpenAI, given: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        lasting.moderations.create(input=given)
    assert caught.value.param is not None and caught.value.param.startswith("input")


def post(server: Running, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body)


def test_texts_become_ids_and_back(server: Running) -> None:
    found = post(server, "/tokenize", model="fake", prompt="Hé").json()
    assert found == {"count": 3, "max_model_len": 1000, "tokens": [72, 195, 169]}
    assert post(server, "/tokenize", content="Hi").json()["tokens"] == [72, 105], "the only model need not be named"
    assert post(server, "/tokenize", content="Hi", return_token_strs=True).json()["token_strs"] == ["H", "i"]
    assert post(server, "/detokenize", tokens=[72, 195, 169]).json() == {"prompt": "Hé", "content": "Hé"}


def test_a_conversation_is_counted(server: Running) -> None:
    found = post(server, "/tokenize", messages=[{"role": "user", "content": "One two"}]).json()
    assert found == {"count": 7, "max_model_len": 1000}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", "content": "x"}, "content"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "x" * 5000, "return_token_strs": True}, "return_token_strs"),
        ("/tokenize", {"prompt": "x", "with_pieces": True}, "with_pieces"),
        ("/tokenize", {"prompt": "x", "model": "nothing"}, "model"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [1000]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
        ("/detokenize", {"tokens": ["1"]}, "tokens.0"),
    ],
)
def test_what_cannot_be_tokenised_is_refused_by_name(server: Running, path: str, body: dict[str, Any], param: str) -> None:
    reply = post(server, path, **body)
    assert reply.status_code in (400, 404) and reply.json()["error"]["param"] == param


def test_with_two_models_one_has_to_be_named(serve: Callable[..., Running]) -> None:
    server = serve(FakePool(FakeService("a"), FakeService("b")))
    reply = post(server, "/tokenize", prompt="x")
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "model"
    assert post(server, "/tokenize", prompt="x", model="b").status_code == 200
