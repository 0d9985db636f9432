"""The first API key of a machine: made once, printed once, kept where only this user can read it."""

from __future__ import annotations

from common import scripts
from common.access import digest_of, id_of, new_key
from common.api_keys import ApiKeys, Asked
from common.errors import JarvisError, StoreUnavailable
from common.settings import Settings
from ops import own_key

NAME, OWNER, TIER = "first", "admin", "custom"


async def ensure(settings: Settings) -> list[str]:
    """Make the first key if there never was one; returns what to say of it."""
    client = scripts.connect(settings)
    try:
        return await _ensure(ApiKeys(client, settings))
    except (JarvisError, OSError) as error:
        why = "Redis does not answer" if isinstance(error, StoreUnavailable) else str(error)
        return [f"no API key could be made or looked up: {why}"]
    finally:
        await client.aclose()


async def _ensure(keys: ApiKeys) -> list[str]:
    file = own_key.kept_in(keys.settings.data_dir)
    kept = own_key.read(file)
    if await keys.any_made():
        if kept and await _counts(keys, kept):
            return [f"the API key of this machine is in {file}"]
        return [
            f"there are API keys, none of them in {file}: set JARVIS_API_KEY, or make one with `jarvis keys create`"
        ]
    # It is in the file before it counts: when we die in between, the next start makes another. One that is in the file
    # already is never taken again: it may have been revoked in a Redis that is gone.
    new = new_key()
    own_key.keep(file, new.text)
    tiers = keys.settings.tiers
    asked = Asked(name=NAME, owner=OWNER, tier=TIER if TIER in tiers else next(iter(tiers)), scopes=("jobs", "admin"))
    if await keys.create(asked, "cli:make run", new, only_first=True) is None:
        return ["another process has just made the first API key"]
    return [
        f"the first API key, shown this once and kept in {file}:",
        f"  {new.text}",
        "it may do all; make others with `jarvis keys create --name NAME --tier free`",
    ]


async def _counts(keys: ApiKeys, text: str) -> bool:
    key_id = id_of(text)
    record = await keys.look(key_id) if key_id else None
    return record is not None and not record.revoked_ms and record.digest == digest_of(text)
