"""The main of every process of a model but the first: `python -m herd.backends.torch.ranks.follower DESCRIPTOR`, started by `starting`.

It reads its part of the weights, then does what it is told until the socket closes: when the first process ends, however it ends, this
one does too, also in the middle of a sum. A forward that fails here cannot be made up for, as the others wait in it: it says so and ends.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import final

import numpy as np
import torch

from herd.backends.base import BackendOptions
from herd.backends.torch.backend import TorchBackend
from herd.backends.torch.devices import find_device, kind_of
from herd.backends.torch.divided import Together
from herd.backends.torch.ranks.frames import (
    AddAdapter,
    Allocate,
    Begin,
    Done,
    Frame,
    FrameReader,
    Here,
    ReadPage,
    RemoveAdapter,
    Replace,
    Run,
    Used,
    WritePage,
    Wrong,
    to_bytes,
)
from herd.backends.torch.ranks.group import ProcessGroup
from herd.backends.torch.ranks.known import KnownPictures
from herd.backends.torch.ranks.reading import divided_leaf, drop_copied
from herd.checkpoints.divided import part_of, part_of_update
from herd.checkpoints.open import open_checkpoint
from herd.models.division import Division, to_run

USED_S = 1.0
RECEIVED_BYTES = 1 << 20
FAILED = 1


@final
class Follower:
    """This process's part of the model, and what is done with it."""

    def __init__(self, begin: Begin, send: Callable[[Frame], None]) -> None:
        self._send = send
        options = BackendOptions(**begin.options)
        device = find_device(options.device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        checkpoint = open_checkpoint(Path(begin.model), begin.mmproj)
        self._division: Division = to_run(checkpoint.config, begin.index, begin.count)
        leaf = divided_leaf(checkpoint, self._division, begin.adapter)
        send(Here(kind_of(device)))  # from here on others wait for this process
        together = Together(self._division, ProcessGroup(device, Path(begin.meeting), begin.index, begin.count, begin.wait_s))
        self._part = TorchBackend(checkpoint.config, leaf, options, checkpoint.release_pages, together=together)
        drop_copied(checkpoint, self._division)
        self._known = KnownPictures()
        self._told_at = 0.0

    def take(self, frame: Frame) -> None:
        """Carries an order out. Errors of a `Run` are raised; others are told."""
        if isinstance(frame, Run):
            self._part.follow(self._known.heard(frame.plan), frame.is_decoding)
            if time.monotonic() - self._told_at > USED_S:
                self._told_at = time.monotonic()
                self._send(Used(self._part.memory()))
            return
        try:
            contents = self._ordered(frame)
        except Exception as problem:
            self._send(Wrong.of(problem))
        else:
            self.done(contents)

    def done(self, contents: bytes = b"") -> None:
        """Says that an order was carried out; the first of them is the loading."""
        self._send(Done(self._part.memory(), np.frombuffer(contents, np.uint8)))

    def _ordered(self, frame: Frame) -> bytes:
        match frame:
            case Allocate(num_pages, by_group):
                self._part.allocate(num_pages, by_group=by_group)
            case ReadPage(page):
                return self._part.read_page(page)
            case WritePage(page, contents):
                self._part.write_page(page, contents.data)
            case Replace(name, leaf):
                self._part.update({name: part_of(name, leaf, self._division)})
            case AddAdapter(name, updates):
                self._part.add_adapter(name, {at: part_of_update(at, each, self._division) for at, each in updates.items()})
            case RemoveAdapter(name):
                self._part.remove_adapter(name)
            case _:
                raise AssertionError(f"{type(frame).__name__} goes the other way")
        return b""


def main(arguments: list[str]) -> None:
    """Does not return: there is nothing to be written at the end, and no thread is worth waiting for."""
    if len(arguments) != 1 or not arguments[0].isdecimal():
        print("This is one of several processes that hold a model; herd starts it, and it is no command of its own.", file=sys.stderr)
        os._exit(2)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # those are for the first process
    connection = socket.socket(fileno=int(arguments[0]))
    frames: queue.SimpleQueue[Frame] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, frames), daemon=True).start()

    def send(frame: Frame) -> None:
        connection.sendall(b"".join(to_bytes(frame)))

    try:
        begin = frames.get()
        assert isinstance(begin, Begin), "the first frame"
        follower = Follower(begin, send)
        follower.done()
        while True:
            follower.take(frames.get())
    except BaseException as problem:
        try:
            send(Wrong.of(problem))
        finally:
            os._exit(FAILED)


def _read(connection: socket.socket, frames: queue.SimpleQueue[Frame]) -> None:
    """Ends the process with the stream, whatever its other threads do."""
    reader = FrameReader()
    try:
        while data := connection.recv(RECEIVED_BYTES):
            for frame in reader.feed(data):
                frames.put(frame)
    except OSError:
        pass  # as good as the end of the stream
    finally:
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
