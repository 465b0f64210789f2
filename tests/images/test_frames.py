"""Videos as frames: evenly taken from animations and lists, bounded, and refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from herd.errors import FileProblem, UsageError
from herd.images.decode import rgb_pixels
from herd.images.frames import read_frames, sample
from images.pictures import encoded, noise

COLOURS = [(index * 20, 0, 255 - index * 20) for index in range(12)]
FRAMES = [Image.new("RGB", (6, 4), colour) for colour in COLOURS]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_frames_of_an_animation_are_taken_evenly_with_their_times(kind: str, tmp_path: Path) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(FRAMES[0], kind, save_all=True, append_images=FRAMES[1:], duration=250, **options)
    path = tmp_path / "film"
    path.write_bytes(data)
    for source in (data, path):
        found = read_frames(source, 4)
        assert (found.total, found.indices, found.times_s) == (12, (0, 3, 7, 11), (0.0, 0.75, 1.75, 2.75))
        for index, image in zip(found.indices, found.images, strict=True):
            assert abs(rgb_pixels(image)[0, 0].astype(int) - COLOURS[index]).max() <= 8


def test_frames_of_a_list_are_taken_evenly() -> None:
    found = read_frames(FRAMES, 5)
    assert found.indices == (0, 2, 5, 8, 11) and found.times_s is None
    assert [image.getpixel((0, 0)) for image in found.images] == [COLOURS[index] for index in found.indices]
    assert read_frames(FRAMES[:3], 5).indices == (0, 1, 2)
    assert read_frames(FRAMES, 1).indices == (0,)


def test_places_are_those_that_torch_gives() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[dev])")
    for total in (*range(1, 40), 97, 1000):
        for count in range(1, min(total, 96) + 1):
            assert (
                np.abs(np.array(sample(total, count)) - torch.linspace(0, total - 1, count, dtype=torch.float64).long().numpy()).max() <= 1
            )
            assert len(set(sample(total, count))) == count


def test_a_single_picture_is_a_video_of_one_frame() -> None:
    assert (read_frames(encoded(noise(5, 5)), 8).total, read_frames(encoded(noise(5, 5), "JPEG"), 8).total) == (1, 1)


@pytest.mark.parametrize("count", [0, -1, 1025, 2.0, True])
def test_a_wrong_count_is_refused(count: int) -> None:
    with pytest.raises(UsageError, match="expected 1 to 1024"):
        read_frames(FRAMES, count)


def test_no_frames_a_missing_file_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no frames"):
        read_frames([], 2)
    with pytest.raises(FileProblem, match="cannot be read"):
        read_frames(tmp_path / "absent.gif", 2)
    noisy = [noise(64, 64, seed=seed) for seed in range(4)]
    data = encoded(noisy[0], "GIF", save_all=True, append_images=noisy[1:])
    with pytest.raises(UsageError, match="cut short"):
        read_frames(encoded(noisy[0], "WEBP", save_all=True, append_images=noisy[1:])[:-3000], 4)
    with pytest.raises(UsageError, match="cut short"):
        read_frames(data[:40], 4)


def test_an_animation_with_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herd.images.frames.MAX_ANIMATION_PIXELS", 100)
    data = encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:])
    with pytest.raises(UsageError, match="12 frames of 6 x 4"):
        read_frames(data, 12)
    assert read_frames(data, 1).total == 12
