"""A plan as plain data, for `--json`, for pages and for whoever draws its charts elsewhere. Bytes, seconds, US dollars; None: not known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herd.planner import cost, memory, speed
from herd.planner.cost import Cost, Range
from herd.planner.devices import Device
from herd.planner.plan import Change, Choice, Plan
from herd.planner.speed import Speed
from herd.planner.training import TrainingPlan, parts
from herd.planner.training import assumed as training_assumed


def assumed(plan: Plan) -> Mapping[str, tuple[str, ...]]:
    """The assumptions behind a plan's figures, by what they are about."""
    device = plan.question.devices[0] if len(plan.question.devices) == 1 else None
    return {"memory": memory.ASSUMED, "speed": speed.assumed(plan.question.shares, device), "cost": cost.ASSUMED}


def plan_data(plan: Plan) -> dict[str, Any]:
    """Everything that a plan says."""
    question = plan.question
    return {
        "model": question.release.name,
        "format": question.stored.name,
        "cache_format": question.cache.name,
        "users": question.load.users,
        "context": question.load.context,
        "prompt_tokens": question.load.prompt_tokens,
        "answer_tokens": question.load.answer_tokens,
        "pictures": question.load.pictures,
        "date": question.today.isoformat(),
        "memory": {
            "weights": dict(plan.memory.weights),
            "cache": dict(plan.memory.cache),
            "cache_kept_whole": plan.memory.cache_kept_whole,
            "pictures": plan.memory.pictures,
            "buffers": plan.memory.buffers,
            "runtime": plan.memory.runtime,
            "together": plan.memory.total,
        },
        "devices": [choice_data(choice) for choice in plan.choices],
        "best": plan.best.fit.device.name if plan.best else None,
        "changes": [_change(change) for change in plan.changes],
        "claims": [
            {"device": c.device, "least": c.least, "most": c.most, "why": c.why, "source": str(c.source)} for c in plan.claims
        ],
        "assumed": {name: list(lines) for name, lines in assumed(plan).items()},
        "notes": list(plan.notes),
        "warnings": list(plan.warnings),
    }  # fmt: skip


def choice_data(choice: Choice) -> dict[str, Any]:
    fit = choice.fit
    return {
        "name": fit.device.name,
        "title": fit.device.title,
        "devices": fit.devices or None,
        "layout": fit.why,
        "bytes_on_each": fit.per_device,
        "usable_bytes": fit.usable,
        "bound": _speed(choice.bound),
        "expected": _speed(choice.expected),
        "cost": _cost(choice.cost),
        "sources": {name: str(source) for name, source in fit.device.sources.items()},
    }


def device_data(device: Device) -> dict[str, Any]:
    """A device that was measured or described."""
    return {
        "name": device.name, "memory": device.memory, "bandwidth": device.bandwidth, "peaks": dict(device.peaks),
        "products": dict(device.products), "attention": device.attention,
    }  # fmt: skip


def training_data(plan: TrainingPlan, model: str, device: Device) -> dict[str, Any]:
    return {
        "model": model,
        "device": device.name,
        "method": plan.run.method,
        "tokens": plan.run.tokens,
        "sequence_tokens": plan.run.sequence_tokens,
        "sequences": plan.run.sequences,
        "checkpointing": plan.run.checkpointing,
        "parameters": plan.parameters,
        "trained": plan.trained,
        "memory": {**parts(plan.memory), "together": plan.memory.total},
        "operations_per_token": plan.operations_per_token,
        "operations": plan.operations,
        "layouts": [
            {"devices": s.devices, "how": s.how, "bytes_on_each": s.per_device, "usable_bytes": s.usable, "seconds": s.seconds,
             "tokens_per_s": s.tokens_per_s}
            for s in plan.layouts
        ],
        "why_not": plan.why_not or None,
        "assumed": list(training_assumed(device)),
    }  # fmt: skip


def _speed(found: Speed | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "alone_tokens_per_s": found.alone,
        "together_tokens_per_s": found.together,
        "with_prompts_tokens_per_s": found.with_prompts,
        "first_token_s": found.first_token_s,
        "last_first_token_s": found.last_first_token_s,
        "waits_for": found.waits_for,
        "waits_alone_for": found.waits_alone_for,
    }


def _cost(found: Cost | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "per_hour": _range(found.per_hour),
        "per_million_tokens": _range(found.per_million),
        "per_million_written_tokens": _range(found.per_million_written),
        "watts": found.watts,
        "kwh_per_million_tokens": found.kwh_per_million,
        "power_dollars_per_million_tokens": found.power_dollars_per_million,
        "hosted": [
            {"service": h.offer.service, "reading": h.offer.reading, "writing": h.offer.writing, "per_million_tokens": h.per_million,
             "ends": h.offer.ends.isoformat() if h.offer.ends else None, "is_over": h.is_over, "source": str(h.offer.source)}
            for h in found.hosted
        ],
        "break_even_tokens_per_month": _range(found.break_even),
        "capacity_tokens_per_month": found.capacity,
    }  # fmt: skip


def _range(found: Range | None) -> list[float] | None:
    return None if found is None else [found.low, found.high]


def _change(change: Change) -> dict[str, Any]:
    return {
        "what": change.what,
        "bytes": change.total or None,
        "devices": change.devices,
        "alone_tokens_per_s": change.alone,
        "together_tokens_per_s": change.together,
        "why_not": change.why_not or None,
    }
