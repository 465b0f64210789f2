"""What tests of students share: documents, and the same model and its low-rank updates in `transformers` and `peft`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conformance import architectures, llama4
from herd.checkpoints import names
from herd.models.architecture import Config
from herd.models.llama import LlamaConfig
from herd.models.weights import Matrix, TensorSpec
from herd.training.student.batches import Document
from herd.training.student.model import Student
from tiny import dense_f32


def documents_of(lengths: Sequence[int], seed: int = 0, vocabulary: int = 300) -> list[Document]:
    """Random documents; about two thirds of their tokens count, some more than others."""
    random = np.random.default_rng([7, seed])
    made = []
    for length in lengths:
        weights = random.choice([0.0, 1.0, 0.5], length)
        weights[0] = 0.0
        made.append(Document(tuple(random.integers(4, vocabulary, length).tolist()), tuple(weights.tolist())))
    return made


def loss_of(student: Student, batch: Any) -> Tensor:
    """The weighted mean of what the targets cost."""
    weights_R = batch.weights_R.to(student.tensors.wide)
    loss: Tensor = -(student.logprobs(batch) * weights_R).sum() / weights_R.sum()
    return loss


def their_model(cfg: Config, leaves: Mapping[str, Matrix], dtype: str) -> Any:
    """The model in `transformers`."""
    if isinstance(cfg, LlamaConfig):
        return architectures.transformers_model(cfg, leaves, dtype)
    return llama4.transformers_model(cfg, leaves, dtype)  # type: ignore[arg-type]


def their_loss(model: Any, documents: Sequence[Document], pixels: Sequence[Any] = ()) -> Tensor:
    """The same mean, each document run by itself; with `pixels` of each document's pictures."""
    total, count = torch.zeros((), dtype=model.dtype), 0.0
    is_wide = model.dtype == torch.float64 and any(type(each).__name__.startswith("Llama4") for each in model.modules())
    with llama4.in_float64() if is_wide else nullcontext():
        for index, document in enumerate(documents):
            given = {"pixel_values": torch.from_numpy(pixels[index]).to(model.dtype)} if len(pixels) else {}
            logits = model(torch.tensor([document.tokens]), **given).logits[0]
            targets, weights = torch.tensor(document.tokens[1:]), torch.tensor(document.weights[1:], dtype=model.dtype)
            chosen = logits[:-1].log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
            total, count = total - (chosen * weights).sum(), count + float(weights.sum())
        return total / count


def in_their_layout(cfg: Config, values: Mapping[str, Tensor]) -> dict[str, NDArray[np.float64]]:
    """Values of all weights (gradients, say) under the names and in the layout of Hugging Face. Rounded to float32."""
    leaves = {name: dense_f32(value.detach().double().numpy()) for name, value in values.items()}
    if isinstance(cfg, LlamaConfig):
        return architectures.hugging_face_values(cfg, leaves)
    return llama4.hugging_face_values(cfg, leaves)  # type: ignore[arg-type]


def halved(values: Tensor, spec: TensorSpec) -> Tensor:
    """Rows in the order of Hugging Face: halves of a head apart."""
    if not spec.rotary_heads:
        return values
    return values.reshape(spec.rotary_heads, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def their_module(cfg: Config, name: str) -> str:
    """What Hugging Face calls the module of a matrix."""
    table = names.HUGGING_FACE if isinstance(cfg, LlamaConfig) else names.HUGGING_FACE_LLAMA4
    return names.in_file(table, name).removesuffix(".weight")


def their_updates(student: Student, theirs: Any) -> dict[str, tuple[Tensor, Any]]:
    """Each parameter of a student with updates: its values in the layout of `peft`, and the parameter there."""
    found = {}
    known = dict(theirs.named_parameters())
    for learned in student.adapters.of.values():
        module = f"base_model.model.{their_module(student.cfg, learned.name)}"
        spec = student.specs[learned.name]
        found[f"{learned.name}.down"] = learned.down, known[f"{module}.lora_A.default.weight"]
        found[f"{learned.name}.up"] = halved(learned.up, spec), known[f"{module}.lora_B.default.weight"]
        if learned.magnitude is not None:
            found[f"{learned.name}.magnitude"] = halved(learned.magnitude, spec), known[f"{module}.lora_magnitude_vector.default.weight"]
    return found


def randomise(student: Student, seed: int = 0) -> None:
    """Updates that have learned something: `up` no longer 0, rows' lengths changed."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for learned in student.adapters.of.values():
            learned.up.copy_(torch.randn(learned.up.shape, generator=random) * 0.1)
            if learned.magnitude is not None:
                learned.magnitude.mul_(1 + 0.2 * torch.rand(learned.magnitude.shape, generator=random))
