"""A download survives what networks and disks do, and nothing incomplete is ever seen under the final name."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import herd
from family.servers import Behaviour, serving
from herd.errors import CapacityError, FileProblem, ProviderError
from herd.family import download
from herd.family.download import Network, fetch
from herd.family.progress import silent

DATA = random.Random(1).randbytes(3_000_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
SOURCES = str(Path(herd.__file__).parent.parent)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_BACK_OFF_S", 0.0)


def get(address: str, target: Path, sha256: str | None = SHA256) -> None:
    fetch(f"{address}/file", target, sha256=sha256, progress=silent, network=Network())


def test_a_file_arrives_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    with serving(Behaviour({"/file": DATA})) as address:
        fetch(f"{address}/file", tmp_path / "f", sha256=SHA256, progress=lambda *told: seen.append(told), network=Network())
    assert (tmp_path / "f").read_bytes() == DATA
    assert os.listdir(tmp_path) == ["f"]
    assert seen[-1] == ("f", len(DATA), len(DATA))


def test_a_broken_connection_goes_on_where_it_was(tmp_path: Path) -> None:
    behaviour = Behaviour({"/file": DATA}, cut_after=[1_000_000, 500_000])
    with serving(behaviour) as address:
        get(address, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA
    assert behaviour.ranges() == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_killed_process_is_resumed_by_the_next(tmp_path: Path) -> None:
    behaviour = Behaviour({"/file": DATA}, pause_s=0.02)
    with serving(behaviour) as address:
        program = (
            "import sys; from pathlib import Path; from herd.family.download import *; from herd.family.progress import silent\n"
            "fetch(sys.argv[1] + '/file', Path(sys.argv[2]), sha256=None, progress=silent, network=Network())"
        )
        command = [sys.executable, "-c", program, address, str(tmp_path / "f")]
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": SOURCES})
        part = tmp_path / "f.part"
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size > 300_000):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = part.stat().st_size
        assert 0 < kept < len(DATA) and not (tmp_path / "f").exists()
        behaviour.pause_s = 0.0
        get(address, tmp_path / "f")
    assert behaviour.ranges() == [None, f"bytes={kept}-"]
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_whole_part_is_not_asked_for_again(tmp_path: Path) -> None:
    """Killed between the last byte and the rename."""
    behaviour = Behaviour({"/file": DATA})
    with serving(behaviour) as address:
        get(address, tmp_path / "f")
        note = f'{{"url": "{address}/file", "identity": "x", "total_bytes": {len(DATA)}}}'
        (tmp_path / "f").rename(tmp_path / "f.part")
        (tmp_path / "f.part.json").write_text(note)
        get(address, tmp_path / "f")
    assert len(behaviour.ranges()) == 1 and (tmp_path / "f").read_bytes() == DATA


def test_a_file_that_changed_on_the_server_starts_over(tmp_path: Path) -> None:
    behaviour = Behaviour({"/file": b"old" * 500_000}, cut_after=[700_000, 0, 0, 0, 0, 0])
    with serving(behaviour) as address:
        with pytest.raises(ProviderError, match="are kept"):
            get(address, tmp_path / "f")
        assert (tmp_path / "f.part").stat().st_size == 700_000
        behaviour.files["/file"] = DATA
        behaviour.cut_after.clear()
        get(address, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA


@pytest.mark.parametrize("fault", ["ignores_range", "lies_about_range"])
def test_a_server_that_does_not_keep_to_ranges_costs_time_and_not_bytes(tmp_path: Path, fault: str) -> None:
    behaviour = Behaviour({"/file": DATA}, cut_after=[1_000_000])
    setattr(behaviour, fault, True)
    with serving(behaviour) as address:
        get(address, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA


def test_without_an_identity_the_download_starts_over(tmp_path: Path) -> None:
    behaviour = Behaviour({"/file": DATA}, cut_after=[1_000_000], has_etag=False)
    with serving(behaviour) as address:
        get(address, tmp_path / "f")
    assert behaviour.ranges() == [None, None] and (tmp_path / "f").read_bytes() == DATA


def test_a_damaged_part_is_noticed_and_fetched_anew(tmp_path: Path) -> None:
    behaviour = Behaviour({"/file": DATA}, cut_after=[1_000_000, 0, 0, 0, 0, 0])
    with serving(behaviour) as address:
        with pytest.raises(ProviderError):
            get(address, tmp_path / "f")
        (tmp_path / "f.part").write_bytes(bytes(1_000_000))
        behaviour.cut_after.clear()
        get(address, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA


def test_wrong_bytes_are_refused_and_deleted(tmp_path: Path) -> None:
    with serving(Behaviour({"/file": DATA})) as address, pytest.raises(FileProblem, match="SHA-256"):
        get(address, tmp_path / "f", "0" * 64)
    assert os.listdir(tmp_path) == []


def test_a_server_error_is_tried_again_and_a_refusal_is_not(tmp_path: Path) -> None:
    behaviour = Behaviour({"/file": DATA}, answers=[503, 500])
    with serving(behaviour) as address:
        get(address, tmp_path / "f")
        assert len(behaviour.requests) == 3
        behaviour.answers = [403]
        with pytest.raises(ProviderError, match=r"127\.0\.0\.1 answered 403"):
            get(address, tmp_path / "g")
        assert len(behaviour.requests) == 4
        behaviour.answers = [503] * 50
        with pytest.raises(ProviderError, match=r"answered 503.*Tried 5 times"):
            get(address, tmp_path / "g")


def test_an_address_that_nobody_answers_is_a_provider_error(tmp_path: Path) -> None:
    with serving(Behaviour()) as address:
        pass
    with pytest.raises(ProviderError, match="cannot be reached"):
        get(address, tmp_path / "f")


def test_space_is_checked_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1_000))  # type: ignore[attr-defined]
    with serving(Behaviour({"/file": DATA})) as address, pytest.raises(CapacityError, match=r"3,000,000 bytes in .*, and 1,000 are free"):
        get(address, tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_a_disk_that_fills_up_keeps_what_arrived_and_resumes(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk; the system refuses the write in the same way."""
    behaviour = Behaviour({"/file": DATA})
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from herd.errors import CapacityError; from herd.family.download import *; from herd.family.progress import silent\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))\n"
        "try:\n    fetch(sys.argv[1] + '/file', Path(sys.argv[2]), sha256=None, progress=silent, network=Network())\n"
        "except CapacityError as error:\n    print(error); sys.exit(error.exit_code)\n"
    )
    with serving(behaviour) as address:
        command = [sys.executable, "-c", program, address, str(tmp_path / "f")]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": SOURCES}, capture_output=True, text=True, timeout=60)
        assert done.returncode == 4 and "f.part" in done.stdout, done
        kept = (tmp_path / "f.part").stat().st_size
        assert 1_000_000 < kept <= 1_500_000 and not (tmp_path / "f").exists()
        get(address, tmp_path / "f")
    assert behaviour.ranges()[-1] == f"bytes={kept}-" and (tmp_path / "f").read_bytes() == DATA


def test_messages_never_show_the_password_of_an_address(tmp_path: Path) -> None:
    with serving(Behaviour()) as address, pytest.raises(ProviderError) as caught:
        get(address.replace("http://", "http://me:secret@"), tmp_path / "f")
    assert "secret" not in str(caught.value)
