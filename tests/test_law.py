"""The import law: which part of herd may import which, and which libraries.

`LAW` is ARCHITECTURE.md's table as data. Arrows point to lower levels only. Imports inside functions and under
`TYPE_CHECKING` count like any other: a part that names another part's types knows it.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "herd"


@dataclass(frozen=True)
class Part:
    """`may` names parts (a parent's name includes what lies in it), `libraries` top-level packages outside the standard library."""

    level: int
    may: frozenset[str] = frozenset()
    libraries: frozenset[str] = frozenset()


def part(level: int, may: str = "", libraries: str = "") -> Part:
    return Part(level, frozenset(may.split()), frozenset(libraries.split()))


BASE = "errors dtypes quant files records version"

LAW = {
    # level 0: every part may import these, except that models may not know numpy or files
    "errors": part(0),
    "records": part(0),
    "dtypes": part(0, "errors records"),
    "quant": part(0, "errors dtypes", "numpy"),
    "version": part(0),
    "files": part(0, "errors core"),
    "processes": part(0, "errors"),
    # level 1: a noun each
    "models": part(1, "errors dtypes records"),
    "images": part(1, BASE, "numpy PIL"),
    "text": part(1, f"{BASE} images core", "tokenizers jinja2"),
    "sampling": part(1, BASE, "numpy llguidance"),
    # level 2: models on disk
    "family": part(2, f"{BASE} models", "huggingface_hub"),
    "checkpoints": part(2, f"{BASE} models", "numpy safetensors"),
    # level 3: where numbers are made
    "backends.base": part(3, f"{BASE} models checkpoints sampling", "numpy"),
    "backends.reference": part(3, f"{BASE} models checkpoints sampling backends.base", "numpy"),
    "backends.cpu": part(3, f"{BASE} models checkpoints sampling backends.base backends.reference core", "numpy"),
    "backends.torch": part(3, f"{BASE} processes models checkpoints sampling backends.base", "numpy torch"),
    "data": part(3, f"{BASE} text images", "numpy PIL tokenizers zstandard"),
    "planner": part(3, f"{BASE} family models"),
    # level 4: many requests, and weights that change
    # (models.weights: the type of what `Engine.update` hands through to `Backend.update`; models.cache_groups: says from a token's
    # position which pages a group of layers still needs, and giving the others back is the engine's work)
    "engine": part(4, f"{BASE} models.weights models.cache_groups backends.base sampling", "numpy"),
    "training": part(
        4, f"{BASE} models images family checkpoints text data sampling engine backends.base backends.torch core", "numpy torch safetensors"
    ),
    # level 5: who answers
    "providers.jobs": part(5, BASE),
    "providers.base": part(5, f"{BASE} text images sampling", "numpy"),
    "providers.answering": part(5, f"{BASE} text images sampling providers.base engine", "numpy"),
    "providers.constraining": part(5, f"{BASE} text sampling providers.base"),
    # (models.weights: the type of an adapter's updates, which go through to the backend)
    "providers.local": part(
        5,
        f"{BASE} models.weights text images sampling providers.base providers.answering providers.constraining engine checkpoints"
        " backends.base",
        "numpy",
    ),
    # (an engine in a process of its own: frames of msgpack between it and who asks)
    "providers.packing": part(5, f"{BASE} text"),
    "providers.frames": part(5, f"{BASE} processes text sampling providers.base providers.packing", "msgpack"),
    "providers.moderating": part(5, f"{BASE} text sampling providers.base"),
    "providers.embedding": part(5, f"{BASE} providers.frames engine backends.base", "numpy"),
    "providers.telling": part(5, f"{BASE} providers.base providers.answering providers.frames engine"),
    "providers.carrying_out": part(5, f"{BASE} providers.frames providers.embedding providers.local"),
    "providers.worker": part(
        5,
        f"{BASE} text providers.base providers.answering providers.local providers.embedding providers.frames providers.moderating "
        "providers.telling providers.carrying_out engine backends.base",
    ),
    "providers.answers": part(5, f"{BASE} providers.base"),
    "providers.process": part(5, f"{BASE} processes providers.frames providers.packing"),
    "providers.supervisor": part(5, f"{BASE} text providers.base providers.answers providers.frames providers.process", "numpy"),
    "providers.routing": part(5, f"{BASE} text providers.base"),
    "providers.relaying": part(5, f"{BASE} providers.frames providers.packing providers.process"),
    "providers.replicas": part(
        5, f"{BASE} text providers.base providers.frames providers.process providers.relaying providers.routing providers.supervisor", "ray"
    ),
    "providers.pool": part(5, f"{BASE} text providers.base providers.process providers.supervisor"),
    "providers.remote": part(5, f"{BASE} text images sampling providers.base", "httpx"),
    # level 6: faces
    # (convert: writes what was learned)
    "api": part(
        6, f"{BASE} models images text sampling family checkpoints backends data planner engine training providers convert core", "numpy"
    ),
    "convert": part(6, f"{BASE} models images text sampling family checkpoints backends planner engine", "numpy"),
    "bench": part(
        7,
        f"{BASE} models sampling family checkpoints backends.base planner engine convert api",
        "numpy llama_cpp openvino openvino_genai",
    ),
    "evals": part(6, f"{BASE} providers.base text", "numpy"),
    "server": part(
        6,
        f"{BASE} providers.base providers.jobs text images sampling.params sampling.constraint sampling.stop family planner",
        "starlette pydantic pydantic_core uvicorn uvloop httptools h11 prometheus_client python_multipart anyio numpy",
    ),
    # level 7 and 8: applications
    "assistant": part(7, f"{BASE} server providers.base text images", "sqlalchemy"),
    "cli": part(
        8,
        f"{BASE} models images text sampling family checkpoints backends data planner engine training providers"
        " api convert evals bench server assistant core",
        "click rich numpy",
    ),
    # the package's own doors: names are looked up on first use
    "__init__": part(7, "errors version api"),
    "__main__": part(9, "cli"),
    # the extension module, seen from Python
    "core": part(0),
}

TORCH_HOMES = {"backends.torch", "training"}


@dataclass(frozen=True)
class Import:
    """`module` imports `target` (a dotted name) on `line`; `deferred` when not at import time of the module."""

    module: str
    target: str
    line: int
    deferred: bool
    for_types: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def modules() -> dict[str, Path]:
    """Every module of the package by dotted name without `herd.`; the package itself is `__init__`."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(module: str, source: str, is_package: bool) -> Iterator[Import]:
    """All imports of a module, absolute, one per imported name: `from a import b` gives `a.b` (b may be a module)."""

    def visit(node: ast.AST, deferred: bool, for_types: bool) -> Iterator[Import]:
        for target in targets(node, module, is_package):
            yield Import(module, target, getattr(node, "lineno", 0), deferred, for_types)
        inside_function = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        types_only = for_types or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside_function, types_only)

    yield from visit(ast.parse(source), False, False)


def targets(node: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """The dotted names that one statement imports; also `import_module("literal")` and `__import__("literal")`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        origin = node.module or ""
        if node.level:
            package = ["herd", *([] if module == "__init__" else module.split("."))]
            up = node.level - (1 if is_package else 0)
            assert up < len(package), f"{module}:{node.lineno} has a relative import that leaves the package"
            origin = ".".join([*package[: len(package) - up], *([node.module] if node.module else [])])
        yield from (f"{origin}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__"):
        name = node.args[0]
        assert isinstance(name, ast.Constant) and isinstance(name.value, str), (
            f"{module}:{node.lineno} imports a name that is only known when it runs; the law cannot be checked"
        )
        yield name.value


def part_of(name: str) -> str | None:
    """The part that a dotted name without `herd.` lies in: the longest one in the law."""
    if name.split(".")[0] == "_core":
        return "core"
    pieces = name.split(".")
    return next((at for size in range(len(pieces), 0, -1) if (at := ".".join(pieces[:size])) in LAW), None)


def all_imports() -> list[Import]:
    return [
        found
        for module, path in modules().items()
        for found in imports_of(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")
    ]


def trespasses(found: Import) -> str | None:
    """Why this import breaks the law, or None."""
    home = part_of(found.module)
    if home is None:
        return None if is_empty_package(found.module) else f"{found.module} is in no part of the law"
    top, _, rest = found.target.partition(".")
    if top in sys.stdlib_module_names:
        return None
    if top != "herd":
        return None if top in LAW[home].libraries else f"{found}, and {home} may not use {top}"
    if not rest:
        return None if home in ("cli", "__main__") else f"{found}: parts import parts, never the whole package"
    there = part_of(rest)
    if there is None and rest.split(".")[0] in {"backends", "providers"}:
        there = rest.split(".")[0]
    if there == home or (there is not None and allowed(home, rest, there)):
        return None
    if there is None and home in ("cli", "__main__"):  # a name of the package's own face, such as herd.__version__
        return None
    return f"{found}, and {home} may import only {', '.join(sorted(LAW[home].may)) or 'the standard library'}"


def allowed(home: str, target: str, there: str) -> bool:
    """Whether `target` lies in something that `home` may import. A module named in the law (sampling.params) admits only itself."""
    return any(there == name or target == name or target.startswith(f"{name}.") for name in LAW[home].may)


def is_empty_package(module: str) -> bool:
    """`backends` and `providers` are folders of parts; the folder itself holds nothing."""
    path = modules()[module]
    return path.name == "__init__.py" and not [
        node for node in ast.parse(path.read_text(encoding="utf-8")).body if not isinstance(node, ast.Expr)
    ]


def test_every_module_lies_in_a_part_of_the_law() -> None:
    unknown = [module for module in modules() if part_of(module) is None and not is_empty_package(module)]
    assert not unknown, f"not in LAW: {unknown}; a new part is an architecture change and gets a decision page"


def test_no_import_breaks_the_law() -> None:
    broken = [reason for found in all_imports() if (reason := trespasses(found)) is not None]
    assert not broken, "\n".join(broken)


def test_the_law_itself_points_downwards() -> None:
    edges = {name: {key for other in rule.may for key in parts_of(other)} for name, rule in LAW.items()}
    upwards = [f"{name} -> {key}" for name, keys in edges.items() for key in keys if LAW[key].level > LAW[name].level]
    assert not upwards, upwards
    assert (circle := find_circle(edges)) is None, " -> ".join(circle or [])


ROOMS = ("settings", "student", "signals", "sources", "running", "recipes", "beginning")
"""The folders of training (docs/decisions/0023-rooms-of-training.md). What lies beside them knows settings alone."""


def room_of(name: str) -> int:
    room = name.split(".")[1] if name.count(".") > 0 else ""
    return ROOMS.index(room) if room in ROOMS else 0


def test_each_room_of_training_knows_those_before_it_only() -> None:
    inside = [found for found in all_imports() if found.module.startswith("training.") and found.target.startswith("herd.training.")]
    assert {room_of(found.module) for found in inside} == set(range(len(ROOMS)))
    wrong = [str(found) for found in inside if room_of(found.target.removeprefix("herd.")) > room_of(found.module)]
    assert not wrong, "\n".join(wrong)


def parts_of(name: str) -> list[str]:
    """The parts that a name in the law stands for: itself, all that lie in it (`backends`), or the one it lies in."""
    return [key for key in LAW if key == name or key.startswith(f"{name}.")] or [name.split(".")[0]]


def test_no_modules_import_each_other_in_a_circle() -> None:
    names = modules()
    edges: dict[str, set[str]] = {name: set() for name in names}
    for found in all_imports():
        if found.for_types or not found.target.startswith("herd."):
            continue
        pieces = found.target.split(".")[1:]
        target = next((at for size in range(len(pieces), 0, -1) if (at := ".".join(pieces[:size])) in names), None)
        if target is not None and target != found.module:
            edges[found.module].add(target)
    assert (circle := find_circle(edges)) is None, " -> ".join(circle or [])


def find_circle(edges: dict[str, set[str]]) -> list[str] | None:
    """A path that returns to its start, or None. Depth first; a node is left only when all it leads to is known to be free."""
    free: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in free:
            return None
        for target in sorted(edges[node]):
            if (circle := walk(target, [*path, node])) is not None:
                return circle
        free.add(node)
        return None

    return next((circle for node in sorted(edges) if (circle := walk(node, [])) is not None), None)


def test_torch_is_imported_in_its_two_homes_only() -> None:
    importing = [found for found in all_imports() if found.target.split(".")[0] == "torch"]
    assert not [str(found) for found in importing if part_of(found.module) not in TORCH_HOMES]
    assert {name for name, rule in LAW.items() if "torch" in rule.libraries} == TORCH_HOMES


def test_the_command_line_imports_only_on_use() -> None:
    at_once = [
        str(found)
        for found in all_imports()
        if part_of(found.module) == "cli" and not found.deferred and not found.for_types and not starts_fast(found.target)
    ]
    assert not at_once, at_once


def starts_fast(target: str) -> bool:
    """What a command file may import before it is known which command runs."""
    return target.split(".")[0] in sys.stdlib_module_names | {"click"} or target.startswith(("herd.cli", "herd.errors", "herd.dtypes"))


def test_the_base_install_is_what_the_package_imports() -> None:
    """A dependency that nothing imports is dropped; an import that nothing declares breaks for users."""
    project = tomllib.loads((SOURCE.parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = names_of(project["dependencies"])
    extras = {name for requirements in project["optional-dependencies"].values() for name in names_of(requirements)}
    peers = {"llama_cpp", "openvino", "openvino_genai"}
    # where the package is called otherwise than what brings it
    distributions = {
        "PIL": "pillow",
        "prometheus_client": "prometheus-client",
        "pydantic_core": "pydantic",
        "python_multipart": "python-multipart",
    }
    imported = {found.target.split(".")[0] for found in all_imports()} - set(sys.stdlib_module_names) - {"herd"} - peers
    used = {distributions.get(name, name) for name in imported}
    assert declared <= used
    assert used - declared <= extras


def names_of(requirements: list[str]) -> set[str]:
    """Names of distributions, without versions."""
    return {requirement.split(";")[0].split(">")[0].split("=")[0].split("<")[0].split("[")[0].strip() for requirement in requirements}


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("models.llama", "import numpy as np", "may not use numpy"),
        ("models.llama", "def f():\n    from herd.files import reader", "may import only"),
        ("engine.scheduler", "from herd.backends.cpu.backend import CpuBackend", "may import only"),
        ("engine.scheduler", "from herd.text.messages import Message", "may import only"),
        ("engine.engine", "from herd.models.llama import LlamaConfig", "may import only"),
        ("evals.kl", "import typing\nif typing.TYPE_CHECKING:\n    from herd.providers.local import LocalProvider", "may import only"),
        ("api", "import torch", "may not use torch"),
        ("text.tokenizer", "from ..models import llama", "may import only"),
        ("server.wire", "from herd.sampling.chain import choose", "may import only"),
        ("backends.reference.ops", "from herd import _core", "may import only"),
        ("checkpoints.gguf", "import importlib\nimportlib.import_module('torch')", "may not use torch"),
        ("surprise", "import os", "is in no part"),
    ],
)
def test_the_law_catches(module: str, source: str, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "is_empty_package", lambda _module: False)
    found = [reason for item in imports_of(module, source, False) if (reason := trespasses(item)) is not None]
    assert found and complaint in found[0], found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("backends.base", "from herd.sampling.chain import Choice"),
        ("backends.cpu.program", "from herd import _core"),
        ("server.wire", "from herd.sampling.params import SamplingParams"),
        ("text.formats.llama3", "from . import jinja\nfrom ..messages import Message"),
        ("providers.local", "from herd.engine.engine import Engine"),
    ],
)
def test_the_law_allows(module: str, source: str) -> None:
    assert [reason for item in imports_of(module, source, False) if (reason := trespasses(item)) is not None] == []


def test_a_circle_is_found() -> None:
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "a"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
