"""Optimisers: AdamW for every weight, or Muon for matrices and AdamW for the rest.

    AdamW   m = b1 m + (1 - b1) g ; v = b2 v + (1 - b2) g^2 ; w = (1 - lr decay) w - lr m^ / (sqrt(v^) + eps)      arXiv 1711.05101
    Muon    m = b m + (1 - b) g ; u = (1 - b) g + b m ; w = (1 - lr decay) w - lr scale(shape) orthogonal(u)       arXiv 2502.16982

`m^`, `v^` are corrected for having begun at 0. `orthogonal` brings all singular values of a matrix near 1, by five steps of a
Newton-Schulz iteration; `scale` makes the root mean square of an update as large as AdamW's usual one (0.2), so that both share one
learning rate. A stack of experts is a stack of matrices: each is orthogonalised by itself. Which weight is what is decided by its
`Kind`, never by its name: Muon takes matrices and experts; tables, head, routers, norms, biases and gates are AdamW's.

Moments are float32 (float64 for float64 weights), whatever the weights are. Everything an optimiser knows is in `state()`, by name;
`restore` takes it back bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from herd.errors import FileProblem, UsageError, did_you_mean
from herd.models.architecture import Config, architecture_of
from herd.models.weights import Kind
from herd.training.settings.optimiser import OptimiserSettings

MUON_KINDS = frozenset((Kind.MATRIX, Kind.EXPERTS))
QUINTIC = (3.4445, -4.7750, 2.0315)
SMALLEST_NORM = 1e-7
ADAPTER_PARTS = (".down", ".up", ".magnitude")


class Optimiser(Protocol):
    """Changes weights by their gradients. Who calls it owns the gradients: they are read, and neither changed nor cleared."""

    def step(self, parameters: Mapping[str, torch.nn.Parameter], lr: float) -> None:
        """One step with `.grad` of each parameter; one without a gradient stays as it is, and so does its state."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that the next steps depend on, as named tensors on the device where they live; not copies."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from a `state()`. `FileProblem` for one of another optimiser or of other weights."""
        ...


def make_optimiser(settings: OptimiserSettings, kinds: Mapping[str, Kind]) -> Optimiser:
    """The optimiser of these settings; `kinds` of all weights that it will be given, by name."""
    return AdamW(settings, kinds) if settings.name == "adamw" else Muon(settings, kinds)


def kinds_of(cfg: Config, names: Iterable[str]) -> dict[str, Kind]:
    """The kind of each trained weight of a model. The two matrices of a low-rank update are matrices."""
    declared = {spec.name: spec.kind for spec in architecture_of(cfg).tensors(cfg)}
    kinds = {}
    for name in names:
        if name in declared:
            kinds[name] = declared[name]
            continue
        base, _, part = name.rpartition(".")
        if base not in declared or f".{part}" not in ADAPTER_PARTS:
            raise UsageError(f"{name} is no weight of this model{did_you_mean(name, declared)}")
        kinds[name] = Kind.GATE if part == "magnitude" else Kind.MATRIX
    return kinds


class AdamW:
    """AdamW with decoupled decay, in torch's fused form."""

    def __init__(self, settings: OptimiserSettings, kinds: Mapping[str, Kind]) -> None:
        self._settings = settings
        self._kinds = dict(kinds)
        self._first: dict[str, Tensor] = {}
        self._second: dict[str, Tensor] = {}
        self._steps: dict[str, Tensor] = {}

    def step(self, parameters: Mapping[str, torch.nn.Parameter], lr: float) -> None:
        groups: dict[tuple[Any, ...], list[str]] = {}
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                self._begin(name, parameter)
                alike = (type(self._first[name]), parameter.device, parameter.dtype)  # divided among processes, or not
                groups.setdefault((_decays(self._settings, self._kinds, name), *alike), []).append(name)
        for (decays, *_), names in groups.items():
            self._step_of(names, parameters, lr, self._settings.weight_decay if decays else 0.0)

    def state(self) -> dict[str, Tensor]:
        parts = {"first": self._first, "second": self._second, "steps": self._steps}
        return {f"{name}.{part}": tensors[name] for name in self._first for part, tensors in parts.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self._first, self._second, self._steps = {}, {}, {}
        parts = {"first": self._first, "second": self._second, "steps": self._steps}
        for key, tensor in tensors.items():
            name, _, part = key.rpartition(".")
            if part not in parts or name not in self._kinds:
                raise _foreign(key, "AdamW")
            parts[part][name] = tensor.detach().clone()
        for name in self._first.keys() | self._second.keys() | self._steps.keys():
            if not all(name in each for each in parts.values()):
                raise FileProblem(f"The state of AdamW for {name} is not whole: first, second and steps belong together.")

    def _begin(self, name: str, parameter: Tensor) -> None:
        """Moments of 0 for a weight's first gradient; for a restored one, that they belong to it."""
        wide = torch.promote_types(parameter.dtype, torch.float32)
        if name not in self._first:
            self._first[name] = torch.zeros_like(parameter, dtype=wide)
            self._second[name] = torch.zeros_like(parameter, dtype=wide)
            self._steps[name] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        for moments in (self._first, self._second):
            moments[name] = _fitting(name, moments[name], parameter, wide)
        self._steps[name] = self._steps[name].to(parameter.device)

    @torch.no_grad()
    def _step_of(self, names: list[str], parameters: Mapping[str, torch.nn.Parameter], lr: float, decay: float) -> None:
        wide = self._first[names[0]].dtype
        values = [parameters[name].detach().to(wide) for name in names]
        adamw(
            values,
            [_gradient(parameters[name]).to(wide) for name in names],
            [self._first[name] for name in names],
            [self._second[name] for name in names],
            [],
            [self._steps[name] for name in names],
            fused=True,
            amsgrad=False,
            beta1=self._settings.beta1,
            beta2=self._settings.beta2,
            lr=lr,
            weight_decay=decay,
            eps=self._settings.eps,
            maximize=False,
        )
        for name, value in zip(names, values, strict=True):
            if parameters[name].dtype != wide:
                parameters[name].copy_(value)


class Muon:
    """Muon for matrices and stacks of matrices, AdamW for the rest."""

    def __init__(self, settings: OptimiserSettings, kinds: Mapping[str, Kind]) -> None:
        self._settings = settings
        self._kinds = dict(kinds)
        self._rest = AdamW(settings, {name: kind for name, kind in kinds.items() if kind not in MUON_KINDS})
        self._momentum: dict[str, Tensor] = {}

    def step(self, parameters: Mapping[str, torch.nn.Parameter], lr: float) -> None:
        rest: dict[str, torch.nn.Parameter] = {}
        for name, parameter in parameters.items():
            if self._kinds[name] not in MUON_KINDS:
                rest[name] = parameter
            elif parameter.grad is not None:
                self._step_of(name, parameter, lr)
        self._rest.step(rest, lr)

    def state(self) -> dict[str, Tensor]:
        return {**{f"{name}.momentum": tensor for name, tensor in self._momentum.items()}, **self._rest.state()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self._momentum = {}
        rest: dict[str, Tensor] = {}
        for key, tensor in tensors.items():
            name, _, part = key.rpartition(".")
            if part != "momentum":
                rest[key] = tensor
            elif self._kinds.get(name) not in MUON_KINDS:
                raise _foreign(key, "Muon")
            else:
                self._momentum[name] = tensor.detach().clone()
        self._rest.restore(rest)

    @torch.no_grad()
    def _step_of(self, name: str, parameter: torch.nn.Parameter, lr: float) -> None:
        settings = self._settings
        wide = torch.promote_types(parameter.dtype, torch.float32)
        gradient = _gradient(parameter).to(wide)
        held = self._momentum.get(name)
        momentum = torch.zeros_like(gradient) if held is None else _fitting(name, held, parameter, wide)
        momentum.lerp_(gradient, 1 - settings.momentum)
        self._momentum[name] = momentum
        update = gradient.lerp(momentum, settings.momentum) if settings.nesterov else momentum
        made = orthogonal(update, settings.iterations, _product_type(settings.products, parameter.device, wide))
        value = parameter.detach().to(wide)
        if _decays(settings, self._kinds, name):
            value.mul_(1 - lr * settings.weight_decay)
        value.add_(made.to(wide), alpha=-lr * update_scale(settings.scale, parameter.shape))
        if parameter.dtype != wide:
            parameter.copy_(value)


def orthogonal(update: Tensor, iterations: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """U V^T, nearly, of each matrix U S V^T of `update` [..., out, in]: singular values between about 0.7 and 1.2, computed in and
    given back as `dtype`. A matrix of zeros stays one.

    The quintic iteration x <- a x + (b A + c A A) x with A = x x^T, and its coefficients, are Keller Jordan's (Muon, 2024).
    """
    is_tall = update.shape[-2] > update.shape[-1]
    x = update.to(dtype, copy=True)
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=SMALLEST_NORM)
    a, b, c = QUINTIC
    for _ in range(iterations):
        gram = x @ x.mT
        x = _added(x, _added(gram, gram, gram, b, c), x, a, 1.0)
    return x.mT if is_tall else x


def update_scale(scale: str, shape: torch.Size) -> float:
    """What Muon's update of a matrix [..., out, in] is multiplied by."""
    rows, columns = shape[-2:]
    match scale:
        case "match_rms":
            return 0.2 * math.sqrt(max(rows, columns))
        case "spectral":
            return math.sqrt(max(1.0, rows / columns))
        case _:
            return 1.0


def _added(base: Tensor, x: Tensor, y: Tensor, beta: float, alpha: float) -> Tensor:
    """beta * base + alpha * x y, with one rounding, for a matrix or a stack."""
    if base.dim() == 2:
        return torch.addmm(base, x, y, beta=beta, alpha=alpha)
    return torch.baddbmm(base.flatten(0, -3), x.flatten(0, -3), y.flatten(0, -3), beta=beta, alpha=alpha).reshape(base.shape)


def _product_type(products: str, device: torch.device, wide: torch.dtype) -> torch.dtype:
    if products == "auto":
        return wide if device.type == "cpu" else torch.bfloat16
    return torch.bfloat16 if products == "bfloat16" else wide


def _decays(settings: OptimiserSettings, kinds: Mapping[str, Kind], name: str) -> bool:
    return kinds[name].value in settings.decayed


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "only weights with a gradient are changed"
    return parameter.grad


def _fitting(name: str, moments: Tensor, parameter: Tensor, wide: torch.dtype) -> Tensor:
    """Moments where the weight is. `FileProblem` for those of a weight of another shape or type."""
    if moments.shape != parameter.shape or moments.dtype != wide:
        raise FileProblem(
            f"The optimiser's state for {name} is {moments.dtype} {list(moments.shape)}; the weight needs {wide} {list(parameter.shape)}. "
            "The state and the weights are from different runs."
        )
    return moments.to(parameter.device)


def _foreign(key: str, name: str) -> FileProblem:
    return FileProblem(
        f"The optimiser's state has {key!r}, which {name} of this run knows nothing of: it is of another optimiser or model."
    )
