"""API keys on a real Redis: changes, what follows from them for the queues, the audit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from common import scripts
from common.access import digest_of, new_key
from common.api_keys import ApiKeys, Asked
from common.errors import InvalidField, NoKey, NotAllowedNow, TooMany
from common.limits import Policy
from common.settings import Settings


@pytest.fixture(params=[1, 3], ids=["one shard", "three shards"])
async def keys(redis_url: str, request: pytest.FixtureRequest) -> AsyncIterator[ApiKeys]:
    """The keys of an empty Redis."""
    settings = Settings(redis_url=redis_url, shards=request.param)
    client = scripts.connect(settings)
    yield ApiKeys(client, settings)
    await client.aclose()


async def read_by_scripts(keys: ApiKeys, name: str, field: str) -> list[object]:
    """What the scripts of each shard find in `limits` or `shares`."""
    prefixes = keys.policies.keys.prefixes()
    rows = [await scripts.execute(keys.redis, "HGET", f"{prefix}{name}", field) for prefix in prefixes]
    return [json.loads(row) if row else None for row in rows]


async def make(keys: ApiKeys, name: str = "ann", **options: object) -> str:
    """A new key's id."""
    found = await keys.create(Asked(name=name, tier=str(options.pop("tier", "custom")), **options), "test")  # type: ignore[arg-type]
    assert found
    return found[0].id


async def test_a_key_is_stored_as_a_digest_and_nothing_in_redis_has_its_text(keys: ApiKeys) -> None:
    assert not await keys.any_made()
    found = await keys.create(Asked(name="ann", tier="free", limits=("tokens=5k/1h",)), "test")
    assert found
    record, new = found
    assert await keys.any_made()
    assert record.digest == digest_of(new.text)
    assert (record.owner, record.tier, record.limits, record.scopes) == ("ann", "free", ("tokens=5k/1h",), ("jobs",))
    await keys.redis.config_set("rdbcompression", "no")  # compressed, a text is in pieces
    dump = b"".join([await keys.redis.dump(name) for name in await keys.redis.keys("*")])
    assert new.digest.encode() in dump
    assert new.text[16:].encode() not in dump


async def test_what_a_key_may_use_is_where_submits_and_claims_read_it(keys: ApiKeys) -> None:
    key_id = await make(keys, limits=("requests=7/60s", "waiting=3", "weight=2", "in_progress=4"))
    door = {"limits": [["requests", 7.0, 60_000, 7.0]], "waiting": 3}
    assert await read_by_scripts(keys, "limits", key_id) == [door] * keys.policies.keys.shards
    share = {"weight": 2.0, "in_progress": 4}
    assert await read_by_scripts(keys, "shares", "ann") == [share] * keys.policies.keys.shards
    await keys.set_limits(key_id, None, (), "test")
    assert set(await read_by_scripts(keys, "limits", key_id)) == {None}
    assert set(await read_by_scripts(keys, "shares", "ann")) == {None}


async def test_an_owner_has_the_widest_share_of_his_living_keys(keys: ApiKeys) -> None:
    await make(keys, owner="ann", limits=("weight=2", "in_progress=1"))
    wide = await make(keys, owner="ann", limits=("weight=5", "in_progress=9"))
    assert (await read_by_scripts(keys, "shares", "ann"))[0] == {"weight": 5.0, "in_progress": 9}
    await keys.revoke(wide, "test")
    assert (await read_by_scripts(keys, "shares", "ann"))[0] == {"weight": 2.0, "in_progress": 1}


async def test_a_change_whose_process_died_before_it_reached_the_queues_gets_there_with_the_next(
    keys: ApiKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(*_: object) -> None:
        raise asyncio.CancelledError

    key_id = await make(keys)
    with monkeypatch.context() as patch:
        patch.setattr(keys.policies, "set_door", dies)
        with pytest.raises(asyncio.CancelledError):
            await keys.set_limits(key_id, None, ("requests=7/60s", "weight=3"), "test")
    assert (await read_by_scripts(keys, "limits", key_id))[0] is None
    await make(keys, "bob")
    assert (await read_by_scripts(keys, "limits", key_id))[0] == {"limits": [["requests", 7.0, 60_000, 7.0]]}
    assert (await read_by_scripts(keys, "shares", "ann"))[0] == {"weight": 3.0}
    assert not await keys.redis.exists(f"{keys._prefix}api_keys:dirty")


async def test_of_two_changes_at_once_the_last_is_what_the_queues_have(
    keys: ApiKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_id = await make(keys)
    other = ApiKeys(keys.redis, keys.settings)
    write, interrupted = keys.policies.set_door, False

    async def late(name: str, policy: Policy) -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            await other.set_limits(key_id, None, ("requests=2/60s",), "other")
        await write(name, policy)

    monkeypatch.setattr(keys.policies, "set_door", late)
    await keys.set_limits(key_id, None, ("requests=1/60s",), "test")
    assert (await keys.get(key_id)).limits == ("requests=2/60s",)
    door = {"limits": [["requests", 2.0, 60_000, 2.0]]}
    assert await read_by_scripts(keys, "limits", key_id) == [door] * keys.policies.keys.shards


async def test_a_lost_tier_leaves_a_key_the_limits_that_it_had(keys: ApiKeys) -> None:
    key_id = await make(keys, tier="free")
    before = await read_by_scripts(keys, "limits", key_id)
    other = ApiKeys(keys.redis, keys.settings.model_copy(update={"tiers": {"other": ()}}))
    await other.apply_all()
    assert await read_by_scripts(keys, "limits", key_id) == before


async def test_rotation_keeps_the_old_secret_for_its_grace_and_no_longer(keys: ApiKeys) -> None:
    found = await keys.create(Asked(name="ann", tier="free"), "test")
    assert found
    first = found[1]
    record, second = await keys.rotate(first.id, 60, "test")
    assert record.matches(second.digest, record.old_until_ms)
    assert record.matches(first.digest, record.old_until_ms - 1)
    assert not record.matches(first.digest, record.old_until_ms)
    record, third = await keys.rotate(first.id, 0, "test")
    assert record.old_digest == ""
    assert not record.matches(second.digest, 0)
    assert record.matches(third.digest, 0)


async def test_a_revoked_key_stays_revoked_and_the_server_knows_that_there_were_keys(keys: ApiKeys) -> None:
    key_id = await make(keys)
    revoked = await keys.revoke(key_id, "test")
    assert revoked.revoked_ms
    assert (await keys.revoke(key_id, "test")).revoked_ms == revoked.revoked_ms
    with pytest.raises(NotAllowedNow, match=f"API key {key_id} is revoked"):
        await keys.rotate(key_id, 0, "test")
    with pytest.raises(NotAllowedNow):
        await keys.set_limits(key_id, None, (), "test")
    assert await keys.any_made()


async def test_a_server_that_once_had_a_key_knows_it_though_none_is_left(keys: ApiKeys) -> None:
    key_id = await make(keys)
    await keys.revoke(key_id, "test")
    await keys.redis.zrem(f"{keys._prefix}api_keys", key_id)
    assert await keys.any_made()


async def test_the_audit_says_who_did_what_to_which_key_once_each(keys: ApiKeys) -> None:
    key_id = await make(keys)
    await keys.set_limits(key_id, "free", ("weight=2",), "cli:ann")
    await keys.rotate(key_id, 5, "key:other")
    await keys.revoke(key_id, "test")
    await keys.revoke(key_id, "test")
    found = await keys.audited()
    assert [(one.action, one.actor, one.thing, one.owner) for one in found] == [
        ("revoke", "test", key_id, "ann"),
        ("rotate", "key:other", key_id, "ann"),
        ("limits", "cli:ann", key_id, "ann"),
        ("create", "test", key_id, "ann"),
    ]
    assert found[2].detail == {"tier": "free", "limits": ["weight=2"]}
    assert [one.action for one in await keys.audited(after=found[1].id, limit=1)] == ["limits"]


async def test_of_those_who_want_to_make_the_first_key_one_does(keys: ApiKeys) -> None:
    asked = Asked(name="first", tier="custom")
    made = await asyncio.gather(*(keys.create(asked, "test", only_first=True) for _ in range(5)))
    assert sum(one is not None for one in made) == 1
    assert len(await keys.all()) == 1


async def test_a_create_that_is_sent_again_makes_one_key(keys: ApiKeys) -> None:
    new, asked = new_key(), Asked(name="ann", tier="free")
    assert await keys.create(asked, "test", new)
    assert await keys.create(asked, "test", new)
    assert len(await keys.all()) == 1
    assert len(await keys.audited()) == 1


async def test_a_full_store_makes_room_by_those_that_were_revoked(
    keys: ApiKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.api_keys.MOST_KEYS", 2)
    first = await make(keys, limits=("waiting=1",))
    await make(keys, "bob")
    with pytest.raises(TooMany):
        await make(keys, "carl")
    await keys.revoke(first, "test")
    await make(keys, "carl")
    with pytest.raises(NoKey):
        await keys.get(first)
    assert (await read_by_scripts(keys, "limits", first))[0] is None


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked(name="", tier="free"), "name is ''"),
        (Asked(name="Ann's laptop", tier="free"), "needs an owner beside it"),
        (Asked(name="ann", tier="free", owner="a b"), "owner is 'a b'"),
        (Asked(name="ann", tier="gold"), "tier is 'gold'; allowed: free, premium, custom"),
        (Asked(name="ann", tier="free", limits=("speed=1",)), "limits is 'speed=1'"),
        (Asked(name="ann", tier="free", scopes=("root",)), "scopes is 'root'; allowed: jobs, admin, metrics"),
        (Asked(name="ann", tier="free", expires_s=-1), "expires_s is -1"),
    ],
)
async def test_what_is_wrong_with_a_new_key_is_named(keys: ApiKeys, asked: Asked, said: str) -> None:
    with pytest.raises(InvalidField, match=said.replace("(", r"\(")):
        await keys.create(asked, "test")
    assert not await keys.any_made()


async def test_an_unknown_key_has_no_record(keys: ApiKeys) -> None:
    for key_id in ("a" * 12, "", "../x", "A" * 12):
        with pytest.raises(NoKey):
            await keys.get(key_id)
        with pytest.raises(NoKey):
            await keys.revoke(key_id, "test")
