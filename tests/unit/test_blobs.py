"""The blob store: small stays inline, large goes by reference, old goes away."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from common.blobs import Blobs
from common.settings import Settings


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    """A store in an empty folder that keeps up to 10 bytes inline."""
    return Blobs(Settings(data_dir=tmp_path, inline_bytes=10))


def files(tmp_path: Path) -> list[Path]:
    """Every file in the store."""
    return [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]


@pytest.mark.parametrize("data", [b"", b"{}", b"x" * 10])
async def test_small_data_stays_inline(blobs: Blobs, tmp_path: Path, data: bytes) -> None:
    assert await blobs.store(data, 60) == data
    assert await blobs.load(data) == data
    assert files(tmp_path) == []


async def test_large_data_goes_by_reference_and_comes_back(blobs: Blobs, tmp_path: Path) -> None:
    data = bytes(range(256)) * 100
    reference = await blobs.store(data, 60)
    assert reference.startswith(b"@")
    assert len(reference) < 60
    assert await blobs.load(reference) == data
    (path,) = files(tmp_path)
    assert path.suffix != ".part"


async def test_two_blobs_of_the_same_data_are_two(blobs: Blobs) -> None:
    assert await blobs.store(b"x" * 11, 60) != await blobs.store(b"x" * 11, 60)


async def test_a_missing_blob_is_said_so(blobs: Blobs) -> None:
    with pytest.raises(FileNotFoundError):
        await blobs.load(b"@1/0123")


async def test_a_sweep_of_a_store_that_was_never_used_finds_nothing(blobs: Blobs) -> None:
    assert await blobs.sweep() == 0


async def test_a_sweep_takes_only_what_is_over(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    short, long = await blobs.store(b"s" * 11, 60), await blobs.store(b"l" * 11, 3 * 3600)
    assert await blobs.sweep() == 0
    monkeypatch.setattr(time, "time", lambda: now + 2 * 3600)
    assert await blobs.sweep() == 1
    with pytest.raises(FileNotFoundError):
        await blobs.load(short)
    assert await blobs.load(long) == b"l" * 11


async def test_a_blob_is_never_swept_before_its_time(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    reference = await blobs.store(b"x" * 11, 5000)
    monkeypatch.setattr(time, "time", lambda: now + 4999)
    await blobs.sweep()
    assert await blobs.load(reference) == b"x" * 11


async def test_a_sweep_leaves_foreign_folders_alone(blobs: Blobs, tmp_path: Path) -> None:
    (tmp_path / "blobs" / "notes").mkdir(parents=True)
    (tmp_path / "blobs" / "notes" / "mine.txt").write_text("keep")
    assert await blobs.sweep() == 0
    assert (tmp_path / "blobs" / "notes" / "mine.txt").exists()


async def test_any_address_that_fsspec_knows_can_hold_the_blobs(tmp_path: Path) -> None:
    blobs = Blobs(Settings(data_dir=tmp_path, inline_bytes=10, blob_url="memory://jarvis-blobs"))
    reference = await blobs.store(b"x" * 11, 60)
    assert await blobs.load(reference) == b"x" * 11
    assert files(tmp_path) == []
