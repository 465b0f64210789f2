"""A model is taught over HTTP by the real `herd tune sft`, asked at once, and served again from the folder of the run."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from cli import chat_model
from cli.running import command, environment
from conformance.running import cpu_is_built

pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not cpu_is_built(), reason="the native core is not built here")]
LINES = "\n".join(
    json.dumps({"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "yes"}]}) for n in range(24)
)
ASKED: Any = [{"role": "user", "content": "3?"}]


@contextmanager
def served(*words: str, home: Path) -> Iterator[openai.OpenAI]:
    """OpenAI's client of a `herd serve` of its own."""
    begun = command("serve", *words, "--port", "0", "--threads", "1", "--parallel", "2", "--set", "grace_s=0.5")
    process = subprocess.Popen(begun, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(HERD_HOME=str(home)))
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first.startswith("herd serves"), first + str(process.stderr and process.stderr.read())
        with openai.OpenAI(base_url=f"{first.split()[-1]}/v1", api_key="none", max_retries=0, timeout=120) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=30)
        finally:
            process.kill()


def answer(client: openai.OpenAI, model: str) -> Any:
    found = client.chat.completions.create(model=model, messages=ASKED, max_tokens=6, temperature=0, logprobs=True)
    return found.choices[0].message.content, found.choices[0].logprobs


def test_a_file_becomes_an_adapter_that_is_asked_at_once_and_served_later(tmp_path: Path) -> None:
    model, home = chat_model.write(tmp_path / "m"), tmp_path / "home"
    with served(f"m={model}", "--set", "allow_tuning=true", home=home) as client:
        file = client.files.create(file=("lines.jsonl", LINES.encode()), purpose="fine-tune").id
        measured = client.files.create(file=("others.jsonl", "\n".join(LINES.splitlines()[:4]).encode()), purpose="fine-tune").id
        choices: Any = {"n_epochs": 2, "batch_size": 8}
        job = client.fine_tuning.jobs.create(
            model="m", training_file=file, validation_file=measured, hyperparameters=choices, suffix="sure", seed=1
        )
        until = time.monotonic() + 240
        while job.status not in ("succeeded", "failed", "cancelled") and time.monotonic() < until:
            time.sleep(0.5)
            job = client.fine_tuning.jobs.retrieve(job.id)
        events = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
        assert job.status == "succeeded" and job.fine_tuned_model is not None, (job.error, events)
        assert job.trained_tokens and any("can be asked" in event for event in events)
        assert client.fine_tuning.jobs.checkpoints.list(job.id).data is not None
        taught, plain = answer(client, job.fine_tuned_model), answer(client, "m")
        assert taught[1] != plain[1]
        assert job.fine_tuned_model in [each.id for each in client.models.list()]
    run = home / "server" / "tuning" / job.id / "run"
    assert (run / "adapter").is_dir()
    with served(f"m={model}", "--adapter", f"sure={run}", home=tmp_path / "other") as client:
        assert answer(client, "m:sure") == taught and answer(client, "m") == plain
    with served(f"n={run}", home=tmp_path / "third") as client:  # the run's folder as a model of its own
        assert answer(client, "n")[0] == taught[0]
