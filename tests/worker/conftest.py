"""Fixtures of the worker's tests: the acceptance tests' profile (a lease of 2 s), and a place to work in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import workers.worker
from common.settings import Settings
from tests.worker.place import InlineBeat, Place


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    """The test profile."""
    return profile(redis_url, tmp_path)


def profile(redis_url: str, folder: Path) -> Settings:
    """Settings with short clocks; nothing of this machine's environment in what the tests depend on."""
    return Settings(
        redis_url=redis_url,
        lease_s=2,
        bell_timeout_s=1,
        redis_timeout_s=3,
        retry_delay_s=0.05,
        grace_s=5,
        data_dir=folder,
    )


@pytest.fixture
def inline_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of this test beat in their own process."""
    monkeypatch.setattr(workers.worker, "BeatProcess", InlineBeat)


@pytest.fixture
async def place(settings: Settings, inline_beat: None) -> AsyncIterator[Place]:
    """A place whose workers start fast."""
    place = Place(settings)
    await place.open()
    yield place
    await place.close()


@pytest.fixture
async def real_place(settings: Settings) -> AsyncIterator[Place]:
    """A place whose workers have the real beat process."""
    place = Place(settings)
    await place.open()
    yield place
    await place.close()
