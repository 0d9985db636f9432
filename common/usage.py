"""What was used: sums by UTC day, API key, owner and model, as the scripts wrote them at the end of each job."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from datetime import date, timedelta
from typing import Any, Literal

import msgspec
import redis.asyncio as redis

from common.errors import InvalidField
from common.keys import Keys
from common.settings import Settings
from common.states import TERMINAL
from common.store import answered

Group = Literal["day", "model", "api_key", "owner"]
GROUPS: tuple[Group, ...] = ("day", "model", "api_key", "owner")
OUTCOMES = tuple(sorted(state.value for state in TERMINAL))
COUNTED = ("prompt_tokens", "completion_tokens", "audio_seconds", "gpu_ms")
#: Most sums in one answer.
MOST_ROWS = 10_000
EPOCH = date(1970, 1, 1)
_PIECE = 1_000


class Used(msgspec.Struct, frozen=True):
    """What was used by one group: None where jobs of several are together; no key is ''."""

    day: date | None
    model: str | None
    api_key: str | None
    owner: str | None
    sums: dict[str, int]

    @property
    def jobs(self) -> dict[str, int]:
        """Jobs by how they ended."""
        return {name: self.sums.get(name, 0) for name in OUTCOMES}

    @property
    def cost_micros(self) -> dict[str, int]:
        """Cost by currency, in millionths."""
        return {name[5:]: micros for name, micros in sorted(self.sums.items()) if name.startswith("cost:")}


class UsageSums:
    """The sums of all shards, over one Redis client."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self.redis = client
        self.keys = Keys(settings.namespace, settings.shards)

    async def used(
        self,
        first: date,
        last: date,
        groups: Collection[Group] = GROUPS,
        owner: str | None = None,
        api_key: str | None = None,
    ) -> list[Used]:
        """Sums of the days from `first` to `last`, grouped, in order. Raises InvalidField, StoreUnavailable."""
        found: dict[tuple[Any, ...], dict[str, int]] = {}
        for key, day in await self._there(first, last):
            await self._add(found, key, day, groups, owner, api_key)
        rows = [Used(day, model, key, whose, sums) for (day, model, key, whose), sums in found.items()]
        return sorted(rows, key=lambda row: (row.day or EPOCH, row.owner or "", row.api_key or "", row.model or ""))

    async def _there(self, first: date, last: date) -> list[tuple[str, date]]:
        days = [first + timedelta(number) for number in range((last - first).days + 1)]
        keys = [(f"{prefix}usage:{(day - EPOCH).days}", day) for day in days for prefix in self.keys.prefixes()]
        there: list[tuple[str, date]] = []
        for start in range(0, len(keys), _PIECE):
            some = keys[start : start + _PIECE]
            pipe = self.redis.pipeline(transaction=False)
            for key, _ in some:
                pipe.exists(key)
            there += [one for one, known in zip(some, await answered(pipe.execute()), strict=True) if known]
        return there

    async def _add(
        self,
        found: dict[tuple[Any, ...], dict[str, int]],
        key: str,
        day: date,
        groups: Collection[Group],
        owner: str | None,
        api_key: str | None,
    ) -> None:
        match = f"* {'*' if api_key is None else api_key or '-'} * {owner or '*'}"  # only an owner might hold a space
        cursor, seen = 0, dict[bytes, bytes]()  # a scan may tell a field twice
        while True:
            cursor, some = await answered(self.redis.hscan(key, cursor, match=match, count=_PIECE))
            seen |= some
            if not cursor:
                break
        for place, (field, value) in enumerate(seen.items()):
            what, its_key, model, its_owner = field.decode().split(" ", 3)
            whole = {"day": day, "model": model, "api_key": "" if its_key == "-" else its_key, "owner": its_owner}
            sums = found.setdefault(tuple(whole[name] if name in groups else None for name in GROUPS), {})
            sums[what] = sums.get(what, 0) + int(value)
            if len(found) > MOST_ROWS:
                raise InvalidField("group_by", ",".join(groups), f"what makes at most {MOST_ROWS} sums; or fewer days")
            if place % _PIECE == _PIECE - 1:
                await asyncio.sleep(0)


def total(rows: Iterable[Used]) -> Used:
    """All of them together."""
    sums: dict[str, int] = {}
    for row in rows:
        for what, number in row.sums.items():
            sums[what] = sums.get(what, 0) + number
    return Used(None, None, None, None, sums)
