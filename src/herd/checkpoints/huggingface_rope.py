"""Rotary positions as Hugging Face's config.json describes them, for every architecture that has them.

Source: transformers `modeling_rope_utils.py`, versions 4.31 to 5.23; defaults are theirs.
"""

from __future__ import annotations

from herd.checkpoints.config_reader import MAX_CONTEXT, ConfigReader, shown
from herd.models.rope import Linear, Llama3, Rope, Scaling, Yarn, yarn_magnitude

DEPENDS_ON_HISTORY = (
    "its frequencies change with the longest text seen so far, so that the same text would give other results depending on what came before"
)


def read_rope(r: ConfigReader, head_width: int, context_length: int, default_theta: float = 10000.0, fact: str = "rope") -> Rope:
    """Both spellings: `rope_theta` with `rope_scaling` (transformers 4), all in `rope_parameters` (transformers 5). `fact`: what the
    facts' names begin with."""
    old, new = r.raw("rope_scaling"), r.raw("rope_parameters")
    for key, value in (("rope_scaling", old), ("rope_parameters", new)):
        if value is not None and not isinstance(value, dict):
            r.problem(f"{r.prefix}{key} is {shown(value)}; allowed is an object")
            return Rope(default_theta, head_width)
    key = "rope_parameters" if new is not None else "rope_scaling"
    values = dict(new if new is not None else old or {})
    if new is not None and old is not None and any(old[each] != new.get(each, old[each]) for each in old):
        r.problem("rope_scaling and rope_parameters contradict each other; leave one of them")
    inner = r.within(key, values)
    theta = r.number("rope_theta", f"{fact}_theta", lowest=1.0, highest=1e15, default=default_theta)
    if inner.has("rope_theta"):
        inner_theta = inner.number("rope_theta", f"{fact}_theta", lowest=1.0, highest=1e15)
        if r.has("rope_theta") and theta != inner_theta:
            r.problem(f"{r.prefix}rope_theta is {theta:g} and {inner.prefix}rope_theta is {inner_theta:g}; they must agree")
        theta = inner_theta
    inner.expect("partial_rotary_factor", 1, because="all of a head is rotated")
    scaling = _scaling(inner, context_length)
    if scaling is not None:
        r.note(f"{fact}_scaling", scaling, key)
    left = [each for each in inner.unread() if values[each] is not None]
    r.problems += [f"{inner.prefix}{shown(each)[1:-1]} is not a key of this kind of scaling" for each in left]
    return Rope(theta=theta, width=head_width, scaling=scaling)


def _scaling(r: ConfigReader, context_length: int) -> Scaling | None:
    kinds = {value for value in (r.raw("rope_type"), r.raw("type")) if isinstance(value, str)} or {"default"}
    if len(kinds) > 1:
        r.problem(f"rope_type and type name two kinds of scaling, {shown(sorted(kinds))}; leave one of them")
    kind = min(kinds)
    if kind == "default":
        return None
    if kind in ("dynamic", "longrope"):
        r.problem(f"the rotary scaling {kind!r} is not supported: {DEPENDS_ON_HISTORY}")
        for key in r.unread():
            r.raw(key)
        return None
    if kind not in ("linear", "llama3", "yarn"):
        r.problem(f"the rotary scaling {shown(kind)} is not known; known are 'default', 'linear', 'llama3' and 'yarn'")
        for key in r.unread():
            r.raw(key)
        return None
    factor = r.number("factor", lowest=1e-6, highest=1e6)
    if kind == "linear":
        return Linear(factor)
    original = r.integer("original_max_position_embeddings", highest=MAX_CONTEXT, default=context_length)
    return _llama3(r, factor, original) if kind == "llama3" else _yarn(r, factor, original)


def _llama3(r: ConfigReader, factor: float, original: int) -> Llama3:
    low = r.number("low_freq_factor", lowest=1e-6, highest=1e6)
    high = r.number("high_freq_factor", lowest=1e-6, highest=1e6)
    if high < low:
        r.problem(f"low_freq_factor is {low:g} and high_freq_factor is {high:g}; the low one must not be the larger")
    return Llama3(factor, low, high, original)


def _yarn(r: ConfigReader, factor: float, original: int) -> Yarn:
    """`attention_factor`, or the quotient of `mscale` and `mscale_all_dim`, replaces the magnitude of the paper."""
    r.raw("finetuned")
    magnitude: float | None = None
    mscale = r.number("mscale", lowest=0, highest=1e6, default=0)
    mscale_all = r.number("mscale_all_dim", lowest=0, highest=1e6, default=0)
    if r.has("attention_factor"):
        magnitude = r.number("attention_factor", lowest=1e-6, highest=1e6)
    elif mscale and mscale_all:
        magnitude = yarn_magnitude(factor, mscale, mscale_all)
    return Yarn(
        factor=factor,
        original_context=original,
        beta_fast=r.number("beta_fast", lowest=1e-3, highest=1e6, default=32.0),
        beta_slow=r.number("beta_slow", lowest=1e-3, highest=1e6, default=1.0),
        magnitude=magnitude,
        truncate=r.boolean("truncate", default=True),
    )
