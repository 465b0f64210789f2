"""Processes of ours: herd's own modules, run beside this one, each with a socket to it, and how frames are cut out of its stream."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from herd.errors import CapacityError


def start_process(module: str, what: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """`module` in a process of its own, which is told the number of its end of a socket, and our end. `what` names it in `CapacityError`,
    for a system that has no more processes, memory or open files."""
    try:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                # -P: modules are not looked for in the folder where somebody happens to stand.
                command = [sys.executable, "-P", "-m", module, str(theirs.fileno())]
                # Not in this process' group: Ctrl-C is for this one alone, which lets what runs finish.
                process = subprocess.Popen(
                    command,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=sys.__stderr__,
                    env=_environment(),
                    process_group=0,
                )
        except BaseException:
            ours.close()
            raise
    except OSError as problem:
        raise CapacityError(f"{what} cannot be started ({problem.strerror}). Try again later.") from problem
    return process, ours


def cut(held: bytearray, length: struct.Struct, check: Callable[[int], None]) -> Iterator[bytes]:
    """The bodies of the frames that are whole in `held`, which loses them. `check` is told each length before its bytes are there, and
    raises for one that cannot be."""
    at = 0
    try:
        while len(held) - at >= length.size:
            (size,) = length.unpack_from(held, at)
            check(size)
            if len(held) - at < length.size + size:
                break
            body = bytes(memoryview(held)[at + length.size : at + length.size + size])
            at += length.size + size
            yield body
    finally:
        del held[:at]


def _environment() -> dict[str, str]:
    """This process' own, with the place that `herd` was imported from, so that the same one runs there."""
    folder = Path(__file__).absolute().parent.parent
    paths = [str(folder), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
