"""A model that learns: the same functions as everywhere, run under gradients over packed documents.

    all weights     every weight is a parameter
    LoRA            low-rank updates of matrices are; the base stays as it is stored (plain, or in blocks that are decoded at each use)

Parameters are float32 whatever is computed in (float64 with that). In 16 bits they are rounded where they are used, and an update's
product is added before the one rounding of the matrix's, so that small updates are not lost in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from herd.backends.base import Encoded, Picture, Plan, Span
from herd.backends.torch.blocks import decode
from herd.backends.torch.devices import find_device
from herd.backends.torch.pictures import memories, overlays
from herd.backends.torch.tensors import as_stored
from herd.dtypes import BF16, F32, DType
from herd.errors import UsageError
from herd.models.architecture import Config, architecture_of, classifying, seeing
from herd.models.ops import PictureStep, Step, as_it_stands
from herd.models.weights import Adapted, Blocks, Dense, Leaf, Matrix, Update
from herd.training.settings.lora import Lora
from herd.training.student.attention import Packed
from herd.training.student.batches import Batch, Document, batch_of
from herd.training.student.cross_entropy import Extras, token_logprobs, weighted_nll
from herd.training.student.four_bits import FourBitTensors, is_rounded
from herd.training.student.four_bits import stored as four_bits_of
from herd.training.student.heads import head_of
from herd.training.student.joined import joined
from herd.training.student.lora import Adapters, Learned, LearningPictureOps, LearningTextOps, begin, targeted
from herd.training.student.sharing import Sharing
from herd.training.student.spread import Context, Spread

CHUNK_ROWS = 512
T = TypeVar("T")


class Student:
    """A model whose weights are learned: all of them, or low-rank updates of some over a frozen base.

    parameters   the learned tensors by name: "layers.0.attention.q", or with LoRA "layers.0.attention.q.down" and ".up" (and with
                 DoRA ".magnitude")
    run          how a layer is computed (`models.ops.Step.run`); `checkpointing.recomputed` needs the least memory

    `keep_bytes`: a frozen base is kept as it is multiplied as far as that reaches: decoded, and matrices of one input as one
    (`joined.py`). Else blocks are decoded twice in each step. `four_bits`: learn for blocks of four bits (`four_bits.py`),
    with `exact_tokens` without rounding what they are multiplied with.
    `sharing`: only this process's part of the model (`sharing.py`). `context`: processes that each compute some tokens of a batch
    (`spread.py`).
    """

    def __init__(
        self,
        cfg: Config,
        leaf: Leaf,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        lora: Lora | None = None,
        seed: int = 0,
        keep_bytes: int = 0,
        four_bits: bool = False,
        exact_tokens: bool = False,
        sharing: Sharing | None = None,
        context: Context | None = None,
    ) -> None:
        _check(cfg, lora, four_bits, sharing)
        self.model, self._seeing = architecture_of(cfg), seeing(cfg)
        self.specs = {spec.name: spec for spec in self.model.tensors(cfg)}
        if sharing is not None:
            cfg, leaf = sharing.config(cfg), sharing.leaf(leaf)
        self.cfg, self.sharing, self.context = cfg, sharing, context
        self.device = find_device(device) if isinstance(device, str) else device
        self.dtype, self.lora, self.seed = dtype, lora, seed
        self.run: Callable[..., Tensor] = as_it_stands
        self.tensors = FourBitTensors(self.device, dtype, keep_bytes)
        self.adapters = Adapters(four_bits=four_bits, rounds_tokens=four_bits and not exact_tokens)
        self.parameters: dict[str, torch.nn.Parameter] = {}
        self._leaves = self._learn_all(leaf) if lora is None else self._learn_updates(leaf, lora)
        self.weights = self.model.weights(cfg, self._leaves.__getitem__)
        self._head = head_of(self.model, self.weights, cfg)
        self.ops, self._picture_ops = LearningTextOps(self.tensors), LearningPictureOps(self.tensors)
        self._equip()

    def _equip(self) -> None:
        """Gives the operations what is learned, and with whom."""
        self.ops.adapters = self._picture_ops.adapters = self.adapters
        if self.sharing is not None:
            self.sharing = self.ops.sharing = self.sharing.over(self._leaves)
        if self.lora is None:
            return
        if self.lora.dora:
            self._learn_magnitudes()
        elif not self.lora.dropout and not self.adapters.rounds_tokens and self.sharing is None:
            self.ops.joined = joined(self.tensors, {learned.name: learned.leaf for learned in self.adapters.of.values()})

    def begin(self, step: int, part: int = 0) -> None:
        """Before what belongs to `part` of optimiser step `step`: the key of what is drawn at random in it."""
        self.adapters.key = (self.seed, step, part)

    def rest(self) -> None:
        """From now on nothing is drawn at random: before an evaluation."""
        self.adapters.key = None

    def batch_of(self, documents: Sequence[Document]) -> Batch:
        """These documents packed, or the stretch of them that this process computes."""
        batch = batch_of(documents, self.device)
        return batch if self.context is None else self.context.stretch(batch)

    def hidden(self, batch: Batch) -> Tensor:
        """[R, D] after the last norm, of the rows of `batch.rows_R`."""
        memory, seen, pictures = self._pictures(batch)
        cache: Packed | Spread = Packed(batch.lengths)
        if batch.only is not None:
            assert self.context is not None, "whoever takes a batch apart says with whom"
            cache = Spread(batch.lengths, *batch.only, self.context)
        step = Step(
            ops=self.ops,
            tokens_T=batch.tokens_T,
            positions_T=batch.positions_T,
            outputs_R=batch.rows_R,
            cache=[cache] * len(self.model.caches(self.cfg)),
            pictures=pictures,
            memory=memory,
            seen=seen,
            run=self.run,
        )
        found: Tensor = self.model.hidden(self.weights, self.cfg, step)
        return found

    def head(self, hidden_RD: Tensor) -> Tensor:
        """Rows after the last norm -> logits [R, V]."""
        step = Step(self.ops, None, None, None, ())
        logits_RV: Tensor = self.model.logits(hidden_RD, self.weights, self.cfg, step)
        return logits_RV

    def logits(self, batch: Batch) -> Tensor:
        """[R, V]: for few rows."""
        return self.head(self.hidden(batch))

    def logprobs(self, batch: Batch) -> Tensor:
        """[R] float32: log p(target | what stands before it). Logits live for a chunk of rows at a time."""
        return self.logprobs_of(self.hidden(batch), batch.targets_R)

    def logprobs_of(self, hidden_RD: Tensor, targets_R: Tensor) -> Tensor:
        """The same, of rows after the last norm."""
        if self._head is not None:
            return token_logprobs(hidden_RD, self.tensors.get(self._head.matrix), targets_R, cap=self._head.cap)
        pieces = []
        for first in range(0, len(targets_R), CHUNK_ROWS):
            rows = slice(first, first + CHUNK_ROWS)
            piece = torch.utils.checkpoint.checkpoint(self._chunk, hidden_RD[rows], targets_R[rows], use_reentrant=False)
            pieces.append(piece)
        return torch.cat(pieces) if pieces else hidden_RD.new_zeros(0, dtype=torch.float32)

    def nll(self, batch: Batch, z_loss: float = 0.0) -> tuple[Tensor, Extras]:
        """- sum over rows of weight * log p(target), with `z_loss` times the squares of the rows' normalisers. With all weights learned
        it is cheaper than `logprobs`: each row's weight is known while its logits are there, so they are made only once."""
        hidden_RD = self.hidden(batch)
        if self._head is None:
            if z_loss:
                raise UsageError("This model makes its logits in more steps than a matrix and a cap; there is no z-loss for that.")
            logprobs_R = self.logprobs_of(hidden_RD, batch.targets_R)
            total = -(batch.weights_R.to(logprobs_R.dtype) * logprobs_R).sum()
            return total, Extras(logprobs_R.detach(), torch.full_like(logprobs_R, torch.nan))
        head = self.tensors.get(self._head.matrix)
        return weighted_nll(hidden_RD, head, batch.targets_R, batch.weights_R, z_loss, cap=self._head.cap)

    def within(self, work: Callable[[], T]) -> T:
        """What `work` gives. In it the weights that lie outside of layers are at hand, where they are divided among processes too."""
        return work()

    def without_adapters(self) -> AbstractContextManager[None]:
        """With LoRA, the model as it was before: the reference that it is compared with."""
        if self.lora is None:
            raise UsageError("All weights are learned, so the model as it was is not in here; keep a second student of it.")
        return self.adapters.off()

    def updates(self) -> dict[str, Update]:
        """With LoRA: what `Engine.add_adapter` takes. `UsageError` for DoRA, which changes whole matrices."""
        if self.lora is not None and self.lora.dora:
            raise UsageError("DoRA changes the length of whole rows; no low-rank update says that. Merge it: herd tune merge.")
        return self.factors()

    def factors(self) -> dict[str, Update]:
        """With LoRA: both matrices of every update, as PEFT's files hold them."""
        if self.lora is None:
            raise UsageError("All weights are learned; there are no updates apart from them.")
        return {
            learned.name: Update(dense(learned.down, F32), dense(learned.up, F32), learned.leaf.scale)
            for learned in self.adapters.of.values()
        }

    def magnitudes(self) -> dict[str, Dense]:
        """With DoRA: the length of each row of the matrices that have an update. Else nothing."""
        learned = [each for each in self.adapters.of.values() if each.magnitude is not None]
        return {each.name: dense(each.magnitude, F32) for each in learned if each.magnitude is not None}

    def leaves(self, dtype: DType | None = None) -> dict[str, Matrix]:
        """All weights that differ from the base's, for `Backend.update`. Plain ones are in `dtype`; None: what is computed in. With
        LoRA each is its stored base with the update on it, with DoRA their product."""
        plain = dtype or (BF16 if self.dtype is torch.bfloat16 else F32)
        if self.lora is None:
            return {name: self._learned_leaf(name, plain) for name in self.parameters}
        if self.lora.dora:
            return {learned.name: dense(self.merged(learned), plain) for learned in self.adapters.of.values()}
        return {name: update.over(self.base(name), name) for name, update in self.updates().items()}

    def _learned_leaf(self, name: str, plain: DType) -> Dense | Blocks:
        """A learned weight as it is stored."""
        parameter, spec = self.parameters[name], self.specs[name]
        if self.adapters.four_bits and is_rounded(spec):
            return four_bits_of(parameter, spec.shape)
        return dense(parameter, F32 if spec.kind.is_vector else plain)

    def _in_four_bits(self, stored: Dense | Blocks) -> Blocks:
        """A frozen weight, rounded for good."""
        made = four_bits_of(self.wide(stored), tuple(stored.shape))
        self.adapters.rounded.add(id(made))
        return made

    def base(self, name: str) -> Dense | Blocks:
        """A weight as it was before an update was put on it."""
        leaf = self._leaves[name]
        return leaf.base if isinstance(leaf, Adapted) else leaf

    @torch.no_grad()
    def merged(self, learned: Learned) -> Tensor:
        """W + scale up down in float32, with DoRA's rows brought to their lengths."""
        value: Tensor = self.wide(learned.leaf.base) + learned.leaf.scale * (learned.up @ learned.down)
        if learned.magnitude is not None:
            value = value * (learned.magnitude / value.norm(dim=1))[:, None]
        return value

    def wide(self, leaf: Dense | Blocks) -> Tensor:
        """A stored weight's values in float32 (or 64), on the device."""
        stored, wide = as_stored(leaf).to(self.device), self.tensors.wide
        return decode(leaf.dtype, stored, wide) if isinstance(leaf, Blocks) else stored.to(wide)

    def _learn_all(self, leaf: Leaf) -> dict[str, Matrix]:
        """Every weight becomes a parameter, and its leaf a name for that."""
        leaves: dict[str, Matrix] = {}
        for name, spec in self.specs.items():
            stored = leaf(name)
            if isinstance(stored, Adapted):
                raise UsageError(f"{name} carries an adapter; merge it first, or go on with LoRA.")
            parameter = torch.nn.Parameter(self.wide(stored).clone())
            leaves[name] = bound = self._bound(parameter)
            if self.adapters.four_bits and is_rounded(spec):
                self.tensors.round(bound)
                self.adapters.rounded.add(id(bound))
            self.parameters[name] = parameter
        return leaves

    def _learn_updates(self, leaf: Leaf, lora: Lora) -> dict[str, Matrix]:
        """Updates over the targets; everything else as it is stored."""
        chosen = {spec.name for spec in targeted(self.specs.values(), lora.targets)}
        self.adapters.dropout = lora.dropout
        leaves: dict[str, Matrix] = {}
        for name, spec in self.specs.items():
            stored = leaf(name)
            if isinstance(stored, Adapted):
                raise UsageError(f"{name} carries an adapter already; merge it first.")
            if self.adapters.four_bits and is_rounded(spec):
                stored = self._in_four_bits(stored)
            leaves[name] = stored
            if name in chosen:
                learned = begin(spec, stored, lora, self.seed, self.device, self.tensors.wide, self.sharing)
                self.tensors.bind(learned.leaf.down, learned.down)
                self.tensors.bind(learned.leaf.up, learned.up)
                self.adapters.of[id(learned.leaf)] = learned
                leaves[name] = learned.leaf
                self.parameters |= learned.parameters
        return leaves

    def _learn_magnitudes(self) -> None:
        """DoRA begins with the rows' own lengths."""
        for learned in self.adapters.of.values():
            learned.magnitude = torch.nn.Parameter(self.ops.row_lengths(learned))
            self.parameters |= learned.parameters

    def _bound(self, parameter: torch.nn.Parameter) -> Dense:
        leaf = Dense(F32, tuple(parameter.shape), None)
        self.tensors.bind(leaf, parameter)
        return leaf

    def _chunk(self, hidden_RD: Tensor, targets_R: Tensor) -> Tensor:
        logits_RV = self.head(hidden_RD).to(self.tensors.wide)
        chosen: Tensor = logits_RV.gather(1, targets_R[:, None])[:, 0] - logits_RV.logsumexp(dim=-1)
        return chosen

    def _pictures(self, batch: Batch) -> tuple[Sequence[object], Tensor | None, object]:
        """What the tokens see of pictures: memories of crossing layers, which tokens see any, and what replaces picture tokens."""
        if self._seeing is None:
            if any(batch.pictures):
                raise UsageError("This model takes no pictures; leave them out of the data, or tune a model that sees.")
            return (), None, None
        spans = tuple(Span(0, range(length), (), pictures=placed) for length, placed in zip(batch.lengths, batch.pictures, strict=True))
        plan, encoded = Plan(spans), Encoded(self._encode)
        crossing = self._seeing.num_crossing(self.cfg)
        if crossing:
            memory, seen = memories(plan, encoded, crossing, self.device)
            return memory, seen, None
        return (), None, overlays(plan, encoded, self.device)

    def _encode(self, picture: Picture) -> list[Tensor]:
        assert self._seeing is not None, "pictures only for models that see"
        tiles, _, height, width = picture.pixels.shape
        pixels = torch.from_numpy(np.ascontiguousarray(picture.pixels)).to(self.device, self.dtype)
        step = PictureStep(self._picture_ops, pixels, tiles, height, width, picture.rows, picture.columns)
        return list(self._seeing.encode(self.weights, self.cfg, step))


def _check(cfg: Config, lora: Lora | None, four_bits: bool, sharing: Sharing | None) -> None:
    """`UsageError` for what cannot be trained so."""
    if classifying(cfg) is not None:
        raise UsageError("This model is a classifier of whole texts; language models are trained here.")
    has_lengths = lora is not None and lora.dora
    if four_bits and has_lengths:
        raise UsageError("DoRA changes rows' lengths, which four bits do not hold; learn for four bits with plain updates.")
    if sharing is not None:
        sharing.check(cfg)
        if four_bits or has_lengths:
            what = "Learning for four bits looks at whole tokens" if four_bits else "DoRA looks at whole rows"
            raise UsageError(f"{what}, of which each process has a part where [parallel] divides a model; leave one of them out.")


def dense(tensor: Tensor, dtype: DType) -> Dense:
    """A tensor's values now, as a stored weight (f32 or bf16) on the host. A copy: learning goes on without it."""
    values = tensor.detach().to("cpu", {F32: torch.float32, BF16: torch.bfloat16}[dtype], copy=True).contiguous()
    rows = 1 if values.dim() < 2 else values.numel() // values.shape[-1]
    return Dense(dtype, tuple(values.shape), values.view(torch.uint8).reshape(rows, -1).numpy())


def named(student: Student) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The parameters in the order of their names, which is that of any state on disk."""
    yield from sorted(student.parameters.items())
