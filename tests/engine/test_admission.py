"""What a request may ask for, where a model can be given more token ids than it can answer with."""

from __future__ import annotations

import pytest

from fakes import FakeBackend
from herd.engine.admission import check_request, new_answer
from herd.engine.request import Request
from herd.errors import UsageError
from herd.sampling.params import SamplingParams

VOCABULARY, EMBEDDINGS = 50, 58


@pytest.fixture
def backend() -> FakeBackend:
    made = FakeBackend(VOCABULARY)
    made.num_embeddings = EMBEDDINGS
    return made


def test_a_prompt_may_have_ids_up_to_the_rows_of_the_embedding(backend: FakeBackend) -> None:
    assert check_request(Request(tokens=[1, EMBEDDINGS - 1]), backend, 100, 100) == [1, EMBEDDINGS - 1]
    with pytest.raises(UsageError, match="The prompt contains token 58; the model's vocabulary is 0 to 57"):
        check_request(Request(tokens=[1, EMBEDDINGS]), backend, 100, 100)


def test_answers_end_and_are_steered_by_ids_that_they_can_have(backend: FakeBackend) -> None:
    with pytest.raises(UsageError, match="stop_ids contains token 50; the model's vocabulary is 0 to 49"):
        check_request(Request(tokens=[1], stop_ids=[VOCABULARY]), backend, 100, 100)
    with pytest.raises(UsageError, match="logit_bias contains token 50"):
        check_request(Request(tokens=[1], sampling=SamplingParams(logit_bias={VOCABULARY: 1.0})), backend, 100, 100)


def test_prompt_tokens_that_no_answer_can_have_take_no_part_in_penalties() -> None:
    request = Request(tokens=[3, 57, 2, 50], sampling=SamplingParams(repetition_penalty=1.2))
    sequence = new_answer(request, list(request.tokens), 10, frozenset(), VOCABULARY, None)
    assert sequence.history is not None
    assert sequence.history.ids.tolist() == [3, 2]
