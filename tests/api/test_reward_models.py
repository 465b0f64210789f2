"""A reward model from `herd tune reward` as the reward of online learning and of rejection sampling, from files to files."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

from click.testing import CliRunner

from cli.chat_model import write
from herd.api.reward_models import RewardModels
from herd.api.tuning import open_tuned
from herd.api.tuning_preferences import tune_reward
from herd.cli.main import main
from herd.data.reading import Place
from herd.data.samples import Preference, Task
from herd.text.messages import Message, Role
from herd.training.recipes.reward_model import FILE, RewardModel, read_head
from herd.training.settings.lora import Lora
from herd.training.settings.reading import read_settings
from herd.training.settings.rejection import RejectionSettings
from herd.training.settings.reward_model import RewardModelSettings
from herd.training.settings.rewards import RewardSettings
from herd.training.settings.student import StudentSettings
from herd.training.signals.rewards import Answer
from herd.training.signals.rollouts import Drawn, Prompt, behind_prompt

LETTERS = "abcdefghijklmnop"
PAIRS = [{"prompt": one, "chosen": "aaaa"[: 1 + at % 4], "rejected": LETTERS[at:] + "q"} for at, one in enumerate(LETTERS)]


def lines(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    return str(path)


def learn(base: Path, folder: Path, *changes: str) -> Path:
    """A reward model that likes short answers of the letter a."""
    data = lines(folder.with_suffix(".jsonl"), PAIRS)
    few = ["loop.schedule.steps=30", "epochs=0", "batch=8", "held_out=2", "lr=0.01", "student.dtype=float32", "student.lora.rank=4"]
    made = tune_reward(read_settings(RewardModelSettings, None, [*few, *changes], {"model": str(base), "data": (data,)}), folder)
    assert made.held_out["accuracy"] == 1
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def judge(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learn(base, tmp_path_factory.mktemp("judges") / "judge")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    records = [{"prompt": one, "answer": "-"} for one in LETTERS[:8]]
    return lines(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", records)


def tuned(*words: object) -> Any:
    return CliRunner().invoke(main, ["tune", *map(str, words)])


def grpo(base: Path, prompts: str, judge: object, out: Path, *more: object) -> Any:
    few = ("--prompts", 4, "--answers", 8, "--max-tokens", 4, "--held-out", 2, "--lora", "--rank", 4, "--lr", 0.02, "--steps", 12)
    words = ("--model", base, "--data", prompts, "--reward", judge, "--set", "student.dtype=float32", "--out", out)
    return tuned("grpo", *words, *few, "--json", *more)


def test_answers_that_a_reward_model_likes_become_likelier(base: Path, prompts: str, judge: Path, tmp_path: Path) -> None:
    found = grpo(base, prompts, judge, tmp_path / "run")
    assert found.exit_code == 0, found.output
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rewards = [line["reward"] for line in log if "gap_most" in line]
    assert len(rewards) == 12 and sum(rewards[-3:]) > sum(rewards[:3]) + 1, rewards
    assert "before_reward" in json.loads(found.stdout)["held_out"]
    assert str(judge / FILE) in json.loads((tmp_path / "run" / "facts.json").read_text())["data"]


def test_the_best_of_several_answers_is_the_one_that_the_reward_model_says(base: Path, prompts: str, judge: Path, tmp_path: Path) -> None:
    out = tmp_path / "best.jsonl"
    few = ("--answers", 6, "--max-tokens", 60, "--keep", 6)
    found = tuned("reject", "--model", base, "--data", prompts, "--reward", judge, *few, "--out", out, "--json")
    assert found.exit_code == 0, found.output
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert json.loads(found.stdout)["kept"] == len(records) > 8, "a reward model has no best reward, so none has to be reached"
    kinds = [(), (RewardSettings(kind="number"),), (RewardSettings(kind="number"), RewardSettings(kind="model", model="j"))]
    least = [RejectionSettings(model="m", data=("d",), rewards=kind).threshold for kind in kinds]
    assert least == [-math.inf, 1, -math.inf]


def test_an_answer_is_worth_the_same_as_a_record_and_as_it_was_drawn(base: Path, judge: Path) -> None:
    """ChatML writes a line's end behind each turn, which no drawn answer has yet."""
    frozen = StudentSettings(method="lora", lora=Lora(rank=1), dtype="float32")
    with open_tuned(judge) as opened:
        model = RewardModel(opened.student(frozen, 0), read_head(judge, opened.cfg.width))
        place, asks = Place(Path("x"), 1), (Message(Role.USER, "e"),)
        recorded, _ = opened.tokenising().pair(Preference(place, asks, (Message(Role.ASSISTANT, "aa"),), (Message(Role.ASSISTANT, "q"),)))
        prompt = Prompt(opened.tokenising().prompt(Task(place, asks)).tokens)
        drawn = Drawn((*opened.tokenizer.encode_inside("aa"), opened.tokenizer.special_ids["<|im_end|>"]), (0.0,) * 3, False)
        rewards = model.judge([opened.document(recorded), behind_prompt(prompt, drawn)])
        assert rewards[0] == pytest.approx(rewards[1], abs=1e-5) and rewards[0] > 0
    with ExitStack() as opening:
        opened = opening.enter_context(open_tuned(base))
        models = RewardModels([RewardSettings(kind="model", model=str(judge))], opened, opening)
        judged = models.judges(StudentSettings(dtype="float32"), 4096)[str(judge)]
        assert judged([(Task(place, asks), Answer("aa", document=behind_prompt(prompt, drawn)))]) == pytest.approx(rewards[1:], abs=1e-4)


def test_prompts_need_nothing_to_check_by_where_a_model_judges(base: Path, judge: Path, tmp_path: Path) -> None:
    bare = lines(tmp_path / "pairs.jsonl", PAIRS[:4])
    found = grpo(base, bare, judge, tmp_path / "run", "--steps", 1, "--held-out", 0)
    assert found.exit_code == 0, found.output
    found = grpo(base, bare, "number", tmp_path / "other", "--steps", 1)
    assert found.exit_code == 2 and "what its answers are checked by" in found.output
    other = lines(tmp_path / "tests.jsonl", [{"prompt": "a", "answer": "b"}, {"prompt": "a", "tests": "b"}])
    found = grpo(base, other, "number", tmp_path / "other", "--steps", 1)
    assert found.exit_code == 2 and "tests.jsonl:2: the task has no 'answer'" in found.output
    assert not (tmp_path / "other").exists(), "refused before the run is begun"


def test_reward_models_that_read_otherwise_are_refused_by_name(base: Path, prompts: str, judge: Path, tmp_path: Path) -> None:
    refused = grpo(base, prompts, base, tmp_path / "run")
    assert refused.exit_code == 3 and "no finished run of herd tune reward" in refused.output
    other = write(tmp_path / "other")
    read = json.loads((other / "tokenizer.json").read_text())
    words = read["model"]["vocab"]
    words["!"], words['"'] = words['"'], words["!"]
    (other / "tokenizer.json").write_text(json.dumps(read))
    refused = grpo(other, prompts, judge, tmp_path / "run")
    assert refused.exit_code == 2 and "its token 0 is b'!', and that of other b'\"'" in refused.output
    third = write(tmp_path / "third")
    config = json.loads((third / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}{% endfor %}assistant:"
    (third / "tokenizer_config.json").write_text(json.dumps(config))
    refused = grpo(third, prompts, judge, tmp_path / "run")
    assert refused.exit_code == 2 and "its chat format is chatml, and that of third is jinja" in refused.output
    refused = grpo(base, prompts, judge, tmp_path / "run", "--max-tokens", 4000)
    assert refused.exit_code == 2 and "was trained for" in refused.output
    assert not (tmp_path / "run").exists(), "refused before anything was begun"
