"""`/v1/fine_tuning/jobs` with OpenAI's own client, and a command that takes the place of learning."""

from __future__ import annotations

import asyncio
import errno
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest

from herd.cli.serve_jobs import TuneJobs
from herd.providers.jobs import JobOrder
from server.fake_pool import FakePool

if TYPE_CHECKING:
    from openai.types.fine_tuning import FineTuningJob

    from server.conftest import Running

Serve = Callable[..., "Running"]
LINES = "\n".join(
    json.dumps({"messages": [{"role": "user", "content": str(n)}, {"role": "assistant", "content": str(n + 1)}]}) for n in range(20)
)
LEARNS = """
import json, sys, time
from pathlib import Path
data, folder, manner = sys.argv[1:4]
run = Path(folder)
run.mkdir(parents=True, exist_ok=True)
(run / "config.toml").write_text("")  # the first thing that a run leaves; its first checkpoint comes minutes later
count = len(Path(data).read_text().splitlines())
if manner == "bad":
    sys.exit(print(f"{data}: line 3 is no conversation.", file=sys.stderr) or 2)
if manner == "crash":
    sys.exit(print("Traceback: /secret/path", file=sys.stderr) or 1)
if manner == "slow":
    time.sleep(60)
with (run / "metrics.jsonl").open("a") as log:
    for step in (1, 2):
        log.write(json.dumps({"step": step, "loss": 3.0 / step, "tokens": count}) + "\\n")
    log.write(json.dumps({"step": 2, "held_out.loss": 1.25}) + "\\n")
(run / "adapter").mkdir(exist_ok=True)
(run / "adapter" / "adapter_config.json").write_text("{}")
"""


class FakeJobs:
    """Learning that is over at once, or never, or goes wrong."""

    def __init__(self, manner: str = "good") -> None:
        self.manner = manner
        self.orders: list[JobOrder] = []

    def command(self, order: JobOrder) -> Sequence[str]:
        self.orders.append(order)
        return [sys.executable, "-c", LEARNS, order.data, order.folder, self.manner]


@pytest.fixture
def start(serve: Serve, tmp_path: Path) -> Callable[..., tuple[Running, FakeJobs, openai.OpenAI]]:
    def begin(manner: str = "good", **settings: Any) -> tuple[Running, FakeJobs, openai.OpenAI]:
        server = serve(FakePool(), **{"data_folder": tmp_path, "allow_tuning": True, **settings})
        jobs = FakeJobs(manner)
        server.house.jobs = jobs
        return server, jobs, openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

    return begin


Start = Callable[..., "tuple[Running, FakeJobs, openai.OpenAI]"]


def upload(client: openai.OpenAI, purpose: Any = "fine-tune") -> str:
    return client.files.create(file=("lines.jsonl", LINES.encode()), purpose=purpose).id


def ended(client: openai.OpenAI, key: str, seconds: float = 60) -> FineTuningJob:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        job = client.fine_tuning.jobs.retrieve(key)
        if job.status in ("succeeded", "failed", "cancelled"):
            return job
        time.sleep(0.05)
    raise AssertionError(f"the job is {job.status}")


def test_a_file_becomes_a_model_that_can_be_asked(start: Start) -> None:
    server, jobs, client = start()
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "learning_rate_multiplier": 0.5}}}
    made = client.fine_tuning.jobs.create(model="fake", training_file=upload(client), method=method, suffix="adder", seed=7)
    assert made.status == "validating_files" and made.fine_tuned_model is None and made.seed == 7
    job = ended(client, made.id)
    assert job.status == "succeeded" and job.trained_tokens == 40 and job.error is None
    assert job.fine_tuned_model is not None and job.fine_tuned_model.startswith("fake:adder-")
    assert list(server.pool.adapters) == [job.fine_tuned_model]
    (order,) = jobs.orders
    assert (order.model, order.epochs, order.batch, order.lr, order.seed, order.resume) == ("fake", 2, None, 0.0005, 7, False)
    assert Path(order.data).read_text() == LINES
    messages: list[Any] = [{"role": "user", "content": "1"}]
    assert client.chat.completions.create(model=job.fine_tuned_model, messages=messages).choices[0].message.content
    assert [each.id for each in client.fine_tuning.jobs.list()] == [made.id]


def test_events_and_the_checkpoint_tell_of_the_run(start: Start) -> None:
    _, _, client = start()
    key = client.fine_tuning.jobs.create(model="fake", training_file=upload(client)).id
    job = ended(client, key)
    events = list(client.fine_tuning.jobs.list_events(key, limit=2))
    assert events[0].message.endswith("can be asked.") and events[-1].message == "The job was taken."
    assert [each.data for each in events if each.type == "metrics"] == [
        {"step": 2, "valid_loss": 1.25},
        {"step": 2, "train_loss": 1.5, "tokens": 20},
        {"step": 1, "train_loss": 3.0, "tokens": 20},
    ]
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(key)
    assert checkpoint.fine_tuned_model_checkpoint == job.fine_tuned_model and checkpoint.step_number == 2
    assert (checkpoint.metrics.train_loss, checkpoint.metrics.valid_loss) == (1.5, 1.25)


def test_what_is_wrong_with_the_data_is_told_and_what_is_wrong_with_us_is_not(start: Start) -> None:
    for manner, message in (("bad", "training_file: line 3 is no conversation."), ("crash", "The server's log says why.")):
        server, _, client = start(manner)
        job = ended(client, client.fine_tuning.jobs.create(model="fake", training_file=upload(client)).id)
        assert job.status == "failed" and job.fine_tuned_model is None
        assert job.error is not None and message in (job.error.message or "") and "/" not in (job.error.message or "")
        server.front.stop(at_once=True)


def test_a_file_that_is_measured_is_handed_on(start: Start) -> None:
    _, jobs, client = start()
    file = upload(client)
    made = client.fine_tuning.jobs.create(model="fake", training_file=upload(client), validation_file=file)
    assert made.validation_file == file and ended(client, made.id).status == "succeeded"
    held_out = jobs.orders[-1].held_out
    assert held_out is not None and Path(held_out).read_text() == LINES and held_out != jobs.orders[-1].data
    words = TuneJobs({"fake": "m"}).command(jobs.orders[-1])
    assert words[words.index("--held-out-data") + 1] == held_out


def test_a_cancelled_job_ends_its_process_and_frees_the_place(start: Start) -> None:
    _, jobs, client = start("slow")
    key = client.fine_tuning.jobs.create(model="fake", training_file=upload(client)).id
    while client.fine_tuning.jobs.retrieve(key).status != "running":
        time.sleep(0.02)
    assert client.fine_tuning.jobs.cancel(key).status == "cancelled"
    jobs.manner = "good"
    assert ended(client, client.fine_tuning.jobs.create(model="fake", training_file=upload(client)).id).status == "succeeded"
    assert client.fine_tuning.jobs.cancel(key).status == "cancelled"


def test_a_job_goes_on_after_a_restart_and_what_was_taught_is_there_again(start: Start, tmp_path: Path) -> None:
    server, _, client = start("slow")
    key = client.fine_tuning.jobs.create(model="fake", training_file=upload(client)).id
    while not (tmp_path / "tuning" / key / "run" / "config.toml").exists():
        time.sleep(0.02)
    server.front.stop(at_once=True)
    time.sleep(0.5)
    server, jobs, client = start()
    job = ended(client, key)
    assert job.status == "succeeded" and jobs.orders[-1].resume
    server.front.stop(at_once=True)
    time.sleep(0.5)
    server, _, client = start()
    until = time.monotonic() + 30
    while not server.pool.adapters and time.monotonic() < until:
        time.sleep(0.05)
    assert list(server.pool.adapters) == [job.fine_tuned_model]


def test_what_cannot_be_honoured_is_refused_by_name(start: Start) -> None:
    _, _, client = start()
    file = upload(client)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"model": "other", "training_file": file}, "model"),
        ({"model": "fake", "training_file": "file-none"}, "training_file"),
        ({"model": "fake", "training_file": upload(client, "batch")}, "training_file"),
        ({"model": "fake", "training_file": file, "validation_file": "file-none"}, "validation_file"),
        ({"model": "fake", "training_file": file, "validation_file": upload(client, "batch")}, "validation_file"),
        ({"model": "fake", "training_file": file, "suffix": "../x"}, "suffix"),
        ({"model": "fake", "training_file": file, "method": {"type": "dpo"}}, "method.type"),
        ({"model": "fake", "training_file": file, "hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
    ]
    for body, param in cases:
        with pytest.raises(openai.APIStatusError) as caught:
            client.fine_tuning.jobs.create(**body)
        assert caught.value.param == param and caught.value.status_code in (400, 404), body


def test_an_operator_has_to_allow_it(start: Start) -> None:
    _, _, client = start(allow_tuning=False)
    with pytest.raises(openai.PermissionDeniedError, match="allow_tuning"):
        client.fine_tuning.jobs.create(model="fake", training_file=upload(client))


def test_a_job_whose_process_cannot_be_started_says_so(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*words: Any, **named: Any) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    _, _, client = start()
    monkeypatch.setattr(asyncio, "create_subprocess_exec", fail)
    job = ended(client, client.fine_tuning.jobs.create(model="fake", training_file=upload(client)).id)
    assert job.status == "failed" and job.error is not None and "cannot be started" in (job.error.message or "")
