"""What a conversion refuses, and what is left when one is interrupted: nothing new, and the source as it was."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from herd.cli.main import main
from herd.convert import convert, streams
from herd.dtypes import F16, F32
from herd.errors import CapacityError, FileProblem, UsageError
from herd.models.rope import Divisors, Rope
from herd.models.weights import Dense
from tiny import random_leaves, tiny_llama
from tiny_files import write_gguf, write_huggingface

CFG = tiny_llama(width=64, num_layers=2, num_heads=4, num_kv_heads=2, head_width=16, ffn_width=96, vocab_size=40)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_huggingface(tmp_path / "model", CFG, random_leaves(CFG, 1, F32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"to": "pth"}, "to is 'pth'; it must be one of hf, gguf, meta"),
        ({"to": "hf", "dtype": "f8"}, "dtype is 'f8'; it must be one of f32, f16, bf16"),
        ({"to": "hf", "dtype": "q4_0"}, "dtype is 'q4_0'"),
        ({"to": "gguf", "quant": "f16"}, "quant is 'f16'; it must be one of q4_0"),
        ({"to": "gguf", "quant": "q4_0", "dtype": "f16"}, "exclude each other"),
        ({"to": "meta", "quant": "q4_0"}, "only gguf has block formats"),
        ({"to": "gguf"}, r"a GGUF file's name ends in \.gguf"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(model: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        convert(model, tmp_path / "new", **settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("to", ["hf", "gguf", "meta"])
def test_nothing_is_overwritten(model: Path, tmp_path: Path, to: str) -> None:
    for name in ("new.gguf", "dangling.gguf"):
        if name.startswith("new"):
            (tmp_path / name).write_text("mine")
        else:
            (tmp_path / name).symlink_to(tmp_path / "absent")
        with pytest.raises(UsageError, match="exists already; nothing is overwritten"):
            convert(model, tmp_path / name, to=to)
    assert (tmp_path / "new.gguf").read_text() == "mine"
    with pytest.raises(UsageError, match="is no folder; make it first"):
        convert(model, tmp_path / "absent" / "new.gguf", to=to)


@pytest.mark.parametrize("to", ["hf", "gguf", "meta"])
def test_a_disk_without_room_is_named_before_and_while_writing(
    model: Path, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from herd.convert import writing

    with monkeypatch.context() as patched:
        patched.setattr(writing.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
        with pytest.raises(CapacityError, match="1,000 are free there"):
            convert(model, tmp_path / "new.gguf", to=to)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("herd.convert.gguf_file.write_tensor", full)
    monkeypatch.setattr("herd.convert.pth_file.write_tensor", full)
    monkeypatch.setattr("herd.convert.safetensors_file.write_tensor", full)
    with pytest.raises(CapacityError, match="No space left"):
        convert(model, tmp_path / "new.gguf", to=to)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("to", ["hf", "gguf", "meta"])
def test_an_interrupted_conversion_leaves_nothing(model: Path, tmp_path: Path, to: str) -> None:
    def stop(_name: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    before = {path.name: path.read_bytes() for path in model.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        convert(model, tmp_path / "new.gguf", to=to, progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_killed_conversion_leaves_no_file_of_that_name(model: Path, tmp_path: Path, to: str) -> None:
    program = (
        "import sys, time; from herd.convert import convert\n"
        "def wait(name, done, total):\n    print(done, flush=True); time.sleep(5)\n"
        "convert(sys.argv[1], sys.argv[2], to=sys.argv[3], progress=wait)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(streams.__file__).parents[2])}
    target = tmp_path / "new.gguf"
    with subprocess.Popen([sys.executable, "-c", program, str(model), str(target), to], env=environment, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.readline()
        running.send_signal(signal.SIGKILL)
    assert not target.exists()
    convert(model, target, to=to)
    assert target.exists()


def test_a_source_that_changes_meanwhile_is_refused(model: Path, tmp_path: Path) -> None:
    def cut(_name: str, _done: int, _total: int) -> None:
        with (model / "model.safetensors").open("ab") as file:
            file.write(b"more")

    with pytest.raises(FileProblem, match="Do not change it while in use"):
        convert(model, tmp_path / "new", to="hf", progress=cut)
    assert not (tmp_path / "new").exists()


def test_values_that_a_format_cannot_hold_are_refused_by_name(tmp_path: Path) -> None:
    leaves: dict[str, Any] = dict(random_leaves(CFG, 1, F32))
    import numpy as np

    values = np.full(leaves["head"].shape, 1e6, np.float32)
    leaves["head"] = Dense(F32, values.shape, values.view(np.uint8))
    folder = write_huggingface(tmp_path / "model", CFG, leaves)
    with pytest.raises(FileProblem, match=r"lm_head\.weight: A weight is larger than 65504"):
        convert(folder, tmp_path / "new", to="hf", dtype=F16.name)
    assert not (tmp_path / "new").exists()


def test_divisors_of_no_known_release_have_no_other_layout(tmp_path: Path) -> None:
    cfg = tiny_llama(width=64, num_layers=1, num_heads=4, num_kv_heads=2, head_width=16, ffn_width=96, vocab_size=40, norm_eps=2.0**-17)
    odd = tiny_llama(
        width=64, num_layers=1, num_heads=4, num_kv_heads=2, head_width=16, ffn_width=96, vocab_size=40, norm_eps=2.0**-17,
        rope=Rope(1e4, 16, Divisors((1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0))),
    )  # fmt: skip
    write_gguf(tmp_path / "model.gguf", odd, random_leaves(cfg, 1, F32))
    with pytest.raises(UsageError, match="only GGUF keeps such a list"):
        convert(tmp_path / "model.gguf", tmp_path / "new", to="hf")
    convert(tmp_path / "model.gguf", tmp_path / "new.gguf", to="gguf")


def test_an_edited_file_of_ours_is_refused(model: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from herd.checkpoints import open_checkpoint

    convert(model, tmp_path / "new.gguf", to="gguf")
    reader = gguf.GGUFReader(tmp_path / "new.gguf", "r+")
    reader.fields["llama.rope.freq_base"].parts[-1][0] = 5e5
    del reader
    with pytest.raises(FileProblem, match=r"llama\.rope\.freq_base is 500000\.0 and herd\.config means 10000\.0"):
        open_checkpoint(tmp_path / "new.gguf")


def test_the_command_says_what_it_wrote(model: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["convert", str(model), str(tmp_path / "new.gguf"), "--to", "gguf", "--quant", "q8_0"])
    assert done.exit_code == 0 and "new.gguf: 21 tensors" in done.output and "note: " in done.output
    again = CliRunner().invoke(main, ["convert", str(model), str(tmp_path / "new.gguf"), "--to", "gguf"])
    assert again.exit_code == 2 and "nothing is overwritten" in again.output


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("to", ["hf", "gguf", "meta"])
def test_memory_does_not_grow_with_the_model(tmp_path: Path, to: str) -> None:
    """A matrix of 400 MB in a model of 800 MB, at most 256 MiB above the interpreter."""
    cfg = tiny_llama(width=1024, num_layers=1, num_heads=8, num_kv_heads=8, head_width=128, ffn_width=256, vocab_size=200_000)
    leaves = {name: Dense(F16, leaf.shape, leaf.data) for name, leaf in _zeros(cfg).items()}
    folder = write_huggingface(tmp_path / "model", cfg, leaves)
    program = (
        "import sys; from herd.convert import convert\n"
        "def peak(): return int(next(line for line in open('/proc/self/status') if 'VmHWM' in line).split()[1])\n"
        "before = peak(); convert(sys.argv[1], sys.argv[2], to=sys.argv[3], dtype='bf16'); print(peak() - before)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(streams.__file__).parents[2])}
    start = time.monotonic()
    words = [sys.executable, "-c", program, str(folder), str(tmp_path / "new.gguf"), to]
    done = subprocess.run(words, env=environment, capture_output=True, check=True, text=True)
    assert int(done.stdout) < 256 << 10, f"{int(done.stdout)} KiB in {time.monotonic() - start:.0f} s"


def _zeros(cfg: Any) -> dict[str, Any]:
    import numpy as np

    from herd.models.llama import tensors

    return {
        spec.name: Dense(F16, spec.shape, np.zeros((spec.shape[0] if len(spec.shape) > 1 else 1, 2 * spec.shape[-1]), np.uint8))
        for spec in tensors(cfg)
    }
