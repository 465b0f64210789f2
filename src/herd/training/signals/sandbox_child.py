"""The program that puts a Python program into a sandbox and waits for it. Run as a file: it needs the standard library only.

    outer   waits; kills everything when its parent dies
      first     alone in namespaces of its own: no network, all files read-only, a small folder in memory; number 1 of its processes
        program   the Python program, after an exec that takes away every right over these namespaces

Arguments: one JSON object (limits, the folder, a descriptor for the report). The program's text comes on standard input. The report is
lines of JSON on that descriptor, which the program itself does not have: which guards hold, then how it ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 0x1000, 0x4000, 0x40000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
NOBODY = 65534


class MountAttributes(ctypes.Structure):
    """`struct mount_attr` of Linux."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def main(told: dict[str, Any], libc: Any) -> int:
    """Everything, in the outer process. The exit status says nothing; the report does."""
    os.set_inheritable(told["report"], False)
    program = sys.stdin.buffer.read()
    guards: list[str] = []
    if libc is not None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if enter_namespaces(libc, told["folder"]):
            guards += ["network", "processes"]
    first = os.fork()
    if first == 0:
        be_first(told, libc, guards, program)
    os.waitpid(first, 0)
    return 0


def enter_namespaces(libc: Any, folder: str) -> bool:
    """New namespaces for what is forked from now on; whether the system allowed it."""
    if os.getuid() == 0:
        # The system counts no processes of root, so it has to be somebody else.
        with contextlib.suppress(OSError):
            show_python(libc, folder)
            os.chown(folder, NOBODY, NOBODY)
            os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWIPC) != 0:
        return False
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    except OSError:
        return False
    return True


def show_python(libc: Any, folder: str) -> None:
    """Lets others than root come to Python where it lies in a folder that only root may enter: that folder then holds nothing else."""
    hidden: dict[str, set[str]] = {}
    for prefix in (sys.prefix, sys.base_prefix):
        above = [prefix[:end] for end, letter in enumerate(prefix) if letter == "/" and end] + [prefix]
        closed = next((path for path in above if not os.stat(path).st_mode & 1), None)
        if closed is not None:
            hidden.setdefault(closed, set()).add(prefix)
    if not hidden or libc.unshare(CLONE_NEWNS) != 0 or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) != 0:
        return
    for closed, prefixes in hidden.items():
        kept = {prefix: os.path.join(folder, str(index)) for index, prefix in enumerate(sorted(prefixes))}
        for prefix, place in kept.items():
            os.mkdir(place)
            libc.mount(prefix.encode(), place.encode(), None, MS_BIND | MS_REC, None)
        libc.mount(b"tmpfs", closed.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, b"size=64k,mode=755")
        for prefix, place in kept.items():
            os.makedirs(prefix, exist_ok=True)
            libc.mount(place.encode(), prefix.encode(), None, MS_BIND | MS_REC, None)
            libc.umount2(place.encode(), 2)
            os.rmdir(place)


def be_first(told: dict[str, Any], libc: Any, guards: list[str], program: bytes) -> None:
    """Closes the files, starts the program and reports its end. Does not return: when it ends, all that it started is killed."""
    if libc is not None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if guards and close_files(told, libc):
            guards.append("files")
    report(told, {"guards": guards})
    child = os.fork()
    if child == 0:
        try:
            be_program(told, "processes" in guards, program)
        finally:
            os._exit(127)
    status = 0
    while True:
        pid, ended = os.wait()
        if pid == child:
            status = ended
            break
    report(told, {"status": os.waitstatus_to_exitcode(status)})
    os._exit(0)


def close_files(told: dict[str, Any], libc: Any) -> bool:
    """Everything read-only, other processes' secrets out of sight, and a small folder in memory to write to."""
    folder = told["folder"].encode()
    if libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) != 0:
        return False
    attributes = MountAttributes(MOUNT_ATTR_RDONLY, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    if libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, ctypes.byref(attributes), size) != 0:
        return False
    room = f"size={told['files_bytes']},nr_inodes={told['files']},mode=700".encode()
    if libc.mount(b"tmpfs", folder, b"tmpfs", MS_NOSUID | MS_NODEV, room) != 0:
        return False
    return bool(libc.mount(b"tmpfs", b"/proc", b"tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, b"size=0,mode=500") == 0)


def be_program(told: dict[str, Any], counts_processes: bool, program: bytes) -> None:
    """Takes its limits and becomes the program, which reads its own text from a pipe."""
    os.chdir(told["folder"])
    reading, writing = os.pipe()
    feeder = os.fork()
    if feeder == 0:
        os.close(reading)
        with contextlib.suppress(OSError):
            while program:
                program = program[os.write(writing, program) :]
        os._exit(0)
    os.close(writing)
    os.dup2(reading, 0)
    limits = [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, told["files_bytes"]), (resource.RLIMIT_NOFILE, 64)]
    limits += [(resource.RLIMIT_CPU, told["cpu_s"]), (resource.RLIMIT_AS, told["memory_bytes"])]
    if counts_processes:
        limits.append((resource.RLIMIT_NPROC, told["processes"] + 3))  # outer, first and feeder besides
    for which, most in limits:
        with contextlib.suppress(ValueError, OSError):  # a limit that is lower already stays
            resource.setrlimit(which, (most, most))
    started = "import sys;exec(compile(sys.stdin.buffer.read(),'program.py','exec'),{'__name__':'__main__'})"
    os.execv(sys.executable, [sys.executable, "-I", "-B", "-c", started])


def report(told: dict[str, Any], line: dict[str, Any]) -> None:
    os.write(told["report"], json.dumps(line).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None))
