"""Many processes, started by torchrun, that train one model: each on its part of every step, with whole or divided weights.

    whole     every process has all weights; gradients are summed after each step
    divided   FSDP2: of each layer's weights, gradients and moments a process keeps 1 / count and gathers the rest while it computes

    torchrun --nproc-per-node 8 -m herd tune sft ...

What a run comes to is that of one process up to the order of sums. Sources: arXiv 2304.11277, and torch's `fully_shard`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor

from herd.errors import UsageError
from herd.models.weights import Dense
from herd.training import gradients
from herd.training.company import ALONE, Company, by_the_first
from herd.training.running import leaving
from herd.training.running.waiting import BEATS, Beats, First
from herd.training.settings.parallel import ParallelSettings
from herd.training.student.lora import Learned
from herd.training.student.model import Student
from herd.training.student.sharing import Sharing
from herd.training.student.spread import Context

MOMENT_S = 0.2
"""How long a process that has failed gives gloo's worker to let go of what it holds: the others may not be there to settle with."""
WHOLE = ParallelSettings()
ENTRIES = ("nll", "logprobs", "logprobs_of", "hidden", "head", "logits", "within")
"""What a student is asked for: each has to gather the weights that lie outside of layers."""


class Processes:
    """The processes of torchrun, one model for all of them."""

    def __init__(self, device: torch.device, store: Any, beats: Beats, parallel: ParallelSettings) -> None:
        self.index, self.count = dist.get_rank(), dist.get_world_size()
        self.part, self.parts = self.index // parallel.together, self.count // parallel.together
        self._first = First(store, self.index == 0, beats)
        self.device = device
        self.sharing: Sharing | None = None
        self.context: Context | None = None
        self.mesh: DeviceMesh = init_device_mesh(device.type, (self.count,), mesh_dim_names=("data",))
        place = self.index % parallel.together
        if parallel.together > 1:
            both = init_device_mesh(device.type, (self.parts, parallel.together), mesh_dim_names=("parts", "together"))
            self._together = both["together"].get_group()
        if parallel.context > 1:
            # Weights are whole, and gradients of stretches are parts of a sum like those of documents.
            self.context = Context(place, parallel.context, self._total_together)
        elif parallel.model > 1:
            self.mesh = both["parts"]
            self.sharing = Sharing(parallel, place, parallel.model, self._total_together, self._gathered_together)
        self._data = self.mesh.get_group()

    def total(self, value: float) -> float:
        whole = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(whole, group=self._data)
        return float(whole)

    def summed(self, values: Tensor) -> Tensor:
        whole = values.clone()
        dist.all_reduce(whole, group=self._data)
        return whole

    def all_agree(self, is_so: bool) -> bool:
        number = torch.tensor(int(is_so), device=self.device)
        dist.all_reduce(number)
        return int(number) == self.count

    def exchanged(self, value: Any) -> list[Any]:
        # As text: torch's own exchange of objects would run pickles.
        problem: Exception | None = None
        text = b""
        try:
            text = json.dumps(value).encode()
        except Exception as raised:  # the others have to hear of it, whatever it is
            problem = raised
        sizes = torch.zeros(self.mesh.size(), dtype=torch.int64, device=self.device)
        sizes[self.mesh.get_local_rank()] = len(text)
        dist.all_reduce(sizes, group=self._data)
        lengths = sizes.tolist()
        if problem is not None:
            raise problem
        if 0 in lengths:
            raise UsageError(
                f"Process {lengths.index(0)} of {self.count} has something for the others that it cannot write down; see what it says."
            )
        mine = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(self.device)
        padded = torch.zeros(max(lengths), dtype=torch.uint8, device=self.device)
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded, group=self._data)
        found = [json.loads(part[:length].cpu().numpy().tobytes()) for part, length in zip(parts, lengths, strict=True)]
        return found[:: len(found) // self.parts]  # one for each part

    def first_is_done(self, is_so: bool) -> None:
        self._first.is_done(is_so)

    def wait_for_first(self) -> bool:
        return self._first.wait()

    def close(self) -> None:
        """Ends this process's signs of life."""
        self._first.close()

    def sum_gradients(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        whole = [each for each in parameters.values() if each.requires_grad and not isinstance(each, DTensor)]
        if not whole:
            return
        # A weight that no process used keeps having no gradient, as it would with one.
        used = torch.tensor([each.grad is not None for each in whole], dtype=torch.int32, device=self.device)
        dist.all_reduce(used, group=self._data)
        for each, count in zip(whole, used.tolist(), strict=True):
            if count:
                if each.grad is None:
                    each.grad = torch.zeros_like(each)
                dist.all_reduce(each.grad, group=self._data)
        for name in () if self.sharing is None else sorted(self.sharing.partial & parameters.keys()):
            if (gradient := parameters[name].grad) is not None:
                self._total_together(gradient)

    def norm(self, parameters: Mapping[str, torch.nn.Parameter]) -> float:
        if self.sharing is not None:
            return self._norm_of_parts(parameters, self.sharing)
        divided = {name: each for name, each in parameters.items() if isinstance(each, DTensor)}
        squares = sum(float(_local(each.grad).double().square().sum()) for each in divided.values() if each.grad is not None)
        whole = gradients.norm({name: each for name, each in parameters.items() if name not in divided})
        return float((self.total(squares) + whole**2) ** 0.5)

    def _norm_of_parts(self, parameters: Mapping[str, torch.nn.Parameter], sharing: Sharing) -> float:
        mine = torch.zeros((), dtype=torch.float64, device=self.device)
        for name, each in parameters.items():
            if each.grad is not None and sharing.axis(name) is not None:
                mine += each.grad.double().square().sum()
        whole = gradients.norm({name: each for name, each in parameters.items() if sharing.axis(name) is None})
        return float((float(sharing.total(mine)) + whole**2) ** 0.5)

    def kept(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if self.sharing is not None:
            whole = {name: self.sharing.whole(name, each) for name, each in tensors.items()}
            return whole if self.index == 0 else {}
        return {name: _local(each) for name, each in tensors.items() if self.index == 0 or isinstance(each, DTensor)}

    def placed(self, tensors: Mapping[str, Tensor], parameters: Mapping[str, torch.nn.Parameter]) -> Mapping[str, Tensor]:
        if self.sharing is not None:
            return {name: self.sharing.part(name, value) for name, value in tensors.items()}
        found = {}
        for name, value in tensors.items():
            like: Any = parameters.get(name, parameters.get(name.rpartition(".")[0]))
            found[name] = self._rows(value, like) if isinstance(like, DTensor) and like.shape == value.shape else value
        return found

    def _total_together(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor, group=self._together)
        return tensor

    def _gathered_together(self, tensor: Tensor) -> list[Tensor]:
        found = [torch.empty_like(tensor) for _ in range(dist.get_world_size(self._together))]
        dist.all_gather(found, tensor, group=self._together)
        return found

    @property
    def groups(self) -> tuple[Any, ...]:
        """All groups that talk, the one of all processes first."""
        if self.sharing is None and self.context is None:
            return (None,)
        return None, self._data, self._together

    def _rows(self, value: Tensor, like: DTensor) -> DTensor:
        """This process's rows of a whole tensor, as torch divides them: in equal pieces, the last ones shorter or empty."""
        rows = -(-value.shape[0] // self.count)
        mine = value[rows * self.index : rows * (self.index + 1)].clone().to(self.device)
        return DTensor.from_local(mine, like.device_mesh, like.placements, run_check=False, shape=value.shape, stride=value.stride())


@contextmanager
def company(device: str = "cpu", beats: Beats = BEATS, parallel: ParallelSettings = WHOLE) -> Iterator[tuple[Company, str]]:
    """The processes that torchrun has started, and the device of this one; alone if it has not. Each GPU takes one process. `UsageError`
    when they are no multiple of those that hold a model together."""
    if (number := int(os.environ.get("WORLD_SIZE", "1"))) % parallel.together:
        raise UsageError(
            f"[parallel] asks for {parallel.together} processes that work together, and there are {number}: start a multiple of "
            "them with torchrun --nproc-per-node."
        )
    if number == 1:
        yield ALONE, device
        return
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    is_gpu = device.startswith("cuda")
    store, index, count = next(iter(rendezvous("env://")))
    dist.init_process_group("nccl" if is_gpu else leaving.register(), store=store, rank=index, world_size=count)
    processes = Processes(torch.device(device), store, beats, parallel)
    is_settled = is_gpu
    try:
        yield processes, device
        by_the_first(processes, lambda: None, "the end of the run")
        if not is_gpu:
            leaving.settled(processes.groups)
            is_settled = True
        dist.barrier()  # nobody leaves while another still talks to it
    finally:
        processes.close()
        dist.destroy_process_group()
        if not is_settled:
            time.sleep(MOMENT_S)


class _Part(torch.nn.Module):
    """The weights that are gathered together: those of one layer, or those outside of layers. `forward` runs a function while they are
    there, with the student's leaves standing for them."""

    def __init__(self, student: Student, names: list[str]) -> None:
        super().__init__()
        self._student = [student]  # in a list, so that torch does not look into it
        self.names = {f"weight_{number}": name for number, name in enumerate(names)}
        for attribute, name in self.names.items():
            self.register_parameter(attribute, student.parameters[name])

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        for attribute, name in self.names.items():
            _bind(self._student[0], name, getattr(self, attribute))
        return function(*arguments)


def divide(student: Student, processes: Processes) -> None:
    """Keeps 1 / count of every learned weight in this process. With LoRA the frozen base stays whole. `UsageError` for DoRA."""
    if student.lora is not None and student.lora.dora:
        raise UsageError(
            "DoRA looks at whole matrices at each step; its weights cannot be divided among processes. Use LoRA, or whole weights."
        )
    layers: dict[str, list[str]] = {}
    outside: list[str] = []
    for name in student.parameters:
        pieces = name.split(".")
        (layers.setdefault(".".join(pieces[:2]), []) if pieces[0] == "layers" else outside).append(name)
    parts = {at: _Part(student, names) for at, names in layers.items()}
    root = _Part(student, outside)
    for at, part in parts.items():
        root.add_module(at.replace(".", "_"), part)
    for module in (*parts.values(), root):
        fully_shard(module, mesh=processes.mesh)
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)  # a sum, not a mean
        module.set_force_sum_reduction_for_comms(True)
    for part in (*parts.values(), root):
        for attribute, name in part.names.items():
            student.parameters[name] = getattr(part, attribute)
    _gather_while_used(student, root, parts)


def _gather_while_used(student: Student, root: _Part, parts: Mapping[str, _Part]) -> None:
    """Layers run inside of their part, everything that a student is asked for inside of the root."""
    run = student.run
    inside = [False]

    def layer(function: Callable[..., Tensor], x: Tensor, weights: Any, *rest: Any) -> Tensor:
        part = parts.get(getattr(weights, "at", ""))
        found: Tensor = run(function, x, weights, *rest) if part is None else part(run, function, x, weights, *rest)
        return found

    def entered(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if inside[0]:
                return function(*arguments, **named)
            inside[0] = True
            try:
                return root(lambda: function(*arguments, **named))
            finally:
                inside[0] = False

        return call

    student.run = layer
    for name in ENTRIES:
        setattr(student, name, entered(getattr(student, name)))


def gather(student: Student) -> None:
    """Makes all weights whole again in every process: before they are written or used elsewhere. Every process has to call it."""
    if student.sharing is not None:
        student.cfg = student.sharing.whole_config(student.cfg)
        for name, parameter in list(student.parameters.items()):
            whole = student.parameters[name] = torch.nn.Parameter(student.sharing.whole(name, parameter))
            if student.lora is not None:
                setattr(*_half(student, name), whole)
    for name, parameter in list(student.parameters.items()):
        if isinstance(parameter, DTensor):
            whole = torch.nn.Parameter(parameter.full_tensor().detach().clone())
            student.parameters[name] = whole
            _bind(student, name, whole)
    for name in ENTRIES:
        student.__dict__.pop(name, None)


def _bind(student: Student, name: str, tensor: torch.nn.Parameter) -> None:
    """`tensor` is the weight of this name from now on."""
    if student.lora is None:
        leaf = student.base(name)
        assert isinstance(leaf, Dense), "a learned weight's leaf is a name for its parameter"
        student.tensors.bind(leaf, tensor)
        return
    learned, which = _half(student, name)
    setattr(learned, which, tensor)
    student.tensors.bind(learned.leaf.down if which == "down" else learned.leaf.up, tensor)


def _half(student: Student, name: str) -> tuple[Learned, str]:
    """Which update a learned tensor of this name belongs to, and what it is there."""
    matrix, _, which = name.rpartition(".")
    return next(each for each in student.adapters.of.values() if each.name == matrix), which


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
