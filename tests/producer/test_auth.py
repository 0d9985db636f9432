"""Who gets in: with which key, where, and what is said to all others."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from common import scripts
from common.access import new_key
from common.api_keys import ApiKeys, Asked
from common.errors import NotAuthenticated, StoreUnavailable
from common.settings import Settings
from producer.app import create_app
from producer.auth import Authenticator
from tests.producer.test_submit import GENERATION


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """What a key's record says is looked up for each request."""
    return settings.model_copy(update={"key_cache_s": 0.0})


async def text_of(keys: ApiKeys, name: str = "ann", *scopes: str, **options: Any) -> str:
    """A new key, as its owner has it."""
    found = await keys.create(Asked(name=name, tier="custom", scopes=scopes or ("jobs",), **options), "test")
    assert found
    return found[1].text


def bearer(text: str) -> dict[str, str]:
    """The header that a key comes in."""
    return {"Authorization": f"Bearer {text}"}


async def test_without_keys_everybody_gets_in_and_says_who_he_is(client: httpx.AsyncClient) -> None:
    for headers in ({}, bearer("unused"), bearer(new_key().text)):
        made = await client.post("/v1/jobs", json={**GENERATION, "user": "ann"}, headers=headers)
        assert made.status_code == 202
        assert made.json()["user"] == "ann"


async def test_from_the_first_key_on_every_call_needs_one(client: httpx.AsyncClient, keys: ApiKeys) -> None:
    text = await text_of(keys)
    for path in ("/v1/jobs", "/v1/models", "/v1/nonsense", "/metrics", "/v1/files", "/v1/admin/keys"):
        refused = await client.get(path)
        assert refused.status_code == 401, path
        assert refused.headers["www-authenticate"] == "Bearer"
        assert refused.headers["x-should-retry"] == "false"
    for path in ("/healthz", "/readyz", "/openapi.json"):
        assert (await client.get(path)).status_code == 200
    assert (await client.get("/v1/jobs", headers=bearer(text))).status_code == 200
    assert (await client.get("/v1/jobs", headers={"x-api-key": text})).status_code == 200
    assert (await client.get("/v1/jobs", headers={"authorization": f"bearer {text}"})).status_code == 200


async def test_the_last_key_that_is_revoked_does_not_open_the_server(client: httpx.AsyncClient, keys: ApiKeys) -> None:
    text = await text_of(keys)
    await keys.revoke(text[3:15], "test")
    assert (await client.get("/v1/jobs")).status_code == 401
    assert (await client.get("/v1/jobs", headers=bearer(text))).status_code == 401


async def test_unknown_wrong_and_revoked_keys_are_answered_alike(client: httpx.AsyncClient, keys: ApiKeys) -> None:
    good, revoked = await text_of(keys), await text_of(keys, "bob")
    await keys.revoke(revoked[3:15], "test")
    answers = [
        await client.get("/v1/jobs", headers=bearer(text))
        for text in (new_key().text, new_key(good[3:15]).text, revoked, new_key(revoked[3:15]).text)
    ]
    assert {one.status_code for one in answers} == {401}
    assert len({one.text for one in answers}) == 1


async def test_only_who_has_the_secret_hears_that_a_key_has_expired(client: httpx.AsyncClient, keys: ApiKeys) -> None:
    text = await text_of(keys, expires_s=0.001)
    assert "expired" in (await client.get("/v1/jobs", headers=bearer(text))).text
    assert "expired" not in (await client.get("/v1/jobs", headers=bearer(new_key(text[3:15]).text))).text


async def test_a_mistyped_key_is_refused_without_asking_redis(
    app: FastAPI, client: httpx.AsyncClient, keys: ApiKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = await text_of(keys)
    await client.get("/v1/jobs", headers=bearer(text))
    monkeypatch.setattr(app.state.authenticator.keys, "look", None)
    for wrong in (text[:-1], text[:-1] + ("a" if text[-1] != "a" else "b"), "sk-123", "", "jv_é"):
        refused = await client.get("/v1/jobs", headers={b"authorization": b"Bearer " + wrong.encode()})
        assert refused.status_code == 401


async def test_openais_addresses_refuse_in_openais_shape(client: httpx.AsyncClient, keys: ApiKeys) -> None:
    await text_of(keys)
    refused = await client.post("/v1/chat/completions", json={"model": "echo", "messages": []})
    assert refused.status_code == 401
    error = refused.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_api_key", None)
    native = (await client.get("/v1/jobs")).json()
    assert (native["status"], native["title"]) == (401, "Unauthorized")


@pytest.mark.parametrize(
    ("scopes", "good", "bad"),
    [
        (("jobs",), ["/v1/jobs", "/v1/queues"], ["/metrics", "/v1/admin/keys", "/v1/admin/audit", "/v1/parked"]),
        (("metrics",), ["/metrics"], ["/v1/jobs", "/v1/files", "/v1/admin/keys"]),
        (("admin",), ["/v1/jobs", "/metrics", "/v1/admin/keys", "/v1/admin/audit", "/v1/parked"], []),
    ],
)
async def test_a_key_does_what_its_scopes_say(
    client: httpx.AsyncClient, keys: ApiKeys, scopes: tuple[str, ...], good: list[str], bad: list[str]
) -> None:
    text = await text_of(keys, "ann", *scopes)
    for path in good:
        assert (await client.get(path, headers=bearer(text))).status_code == 200, path
    for path in bad:
        refused = await client.get(path, headers=bearer(text))
        assert refused.status_code == 403, path
        assert "scopes" in refused.text


async def test_metrics_can_be_left_open(settings: Settings, keys: ApiKeys) -> None:
    await text_of(keys)
    app = create_app(settings.model_copy(update={"metrics_open": True}))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/v1/jobs")).status_code == 401


async def test_beyond_loopback_nobody_gets_in_without_a_key_even_before_there_is_one(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"host": "0.0.0.0"}))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        assert (await client.get("/v1/jobs")).status_code == 401


async def test_an_admin_makes_changes_and_revokes_keys_over_http(client: httpx.AsyncClient, keys: ApiKeys) -> None:
    admin = bearer(await text_of(keys, "root", "admin"))
    asked = {"name": "app", "tier": "free", "owner": "team-a", "limits": ["tokens=5k/1h"], "expires_s": 3600}
    made = await client.post("/v1/admin/keys", json=asked, headers=admin)
    assert made.status_code == 201
    one = made.json()
    assert (one["owner"], one["tier"], one["limits"]) == ("team-a", "free", ["tokens=5k/1h"])
    assert one["effective_limits"] == ["tokens=5000/3600s", "requests=100/3600s"]
    text = one.pop("key")
    path = f"/v1/admin/keys/{one['id']}"
    assert (await client.get("/v1/jobs", headers=bearer(text))).status_code == 200

    rotated = (await client.post(f"{path}/rotate", json={"grace_s": 0}, headers=admin)).json()
    assert (await client.get("/v1/jobs", headers=bearer(text))).status_code == 401
    assert (await client.get("/v1/jobs", headers=bearer(rotated["key"]))).status_code == 200

    changed = await client.put(f"{path}/limits", json={"limits": ["weight=3"], "tier": "premium"}, headers=admin)
    assert (changed.json()["limits"], changed.json()["tier"]) == (["weight=3"], "premium")
    revoked = await client.post(f"{path}/revoke", headers=admin)
    assert revoked.json()["status"] == "revoked"
    assert (await client.get("/v1/jobs", headers=bearer(rotated["key"]))).status_code == 401

    listed = (await client.get("/v1/admin/keys", headers=admin)).json()["data"]
    assert [key["name"] for key in listed] == ["app", "root"]
    audit = (await client.get("/v1/admin/audit", headers=admin)).json()
    assert [entry["action"] for entry in audit["data"]] == ["revoke", "limits", "rotate", "create", "create"]
    everything = (await client.get(path, headers=admin)).text + str(listed) + str(audit)
    assert text[16:] not in everything
    assert rotated["key"][16:] not in everything


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"tier": "free"}, "name"),
        ({"name": "a", "tier": "gold"}, "tier"),
        ({"name": "a", "tier": "free", "limits": ["speed=9"]}, "limits"),
        ({"name": "a", "tier": "free", "scopes": ["root"]}, "scopes"),
        ({"name": "a", "tier": "free", "owner": "a b"}, "owner"),
        ({"name": "a", "tier": "free", "expires_s": 0}, "expires_s"),
        ({"name": "a", "tier": "free", "colour": "red"}, "colour"),
    ],
)
async def test_what_is_wrong_with_a_new_key_is_named(
    client: httpx.AsyncClient, keys: ApiKeys, asked: dict[str, Any], field: str
) -> None:
    admin = bearer(await text_of(keys, "root", "admin"))
    refused = await client.post("/v1/admin/keys", json=asked, headers=admin)
    assert refused.status_code == 422
    assert refused.json()["field"] == field


async def test_the_first_key_is_not_made_over_http(client: httpx.AsyncClient) -> None:
    refused = await client.post("/v1/admin/keys", json={"name": "me", "tier": "custom", "scopes": ["admin"]})
    assert refused.status_code == 403
    assert "jarvis keys create" in refused.text


async def test_a_job_is_its_keys_owners_and_only_an_admin_names_another(
    client: httpx.AsyncClient, keys: ApiKeys
) -> None:
    ann, admin = bearer(await text_of(keys, "ann")), bearer(await text_of(keys, "root", "admin"))
    assert (await client.post("/v1/jobs", json=GENERATION, headers=ann)).json()["user"] == "ann"
    refused = await client.post("/v1/jobs", json={**GENERATION, "user": "bob"}, headers=ann)
    assert refused.status_code == 403
    assert refused.json()["field"] == "user"
    listed = await client.post("/v1/jobs", json=[GENERATION, {**GENERATION, "user": "bob"}], headers=ann)
    assert listed.status_code == 403
    named = await client.post("/v1/jobs", json={**GENERATION, "user": "bob"}, headers=admin)
    assert named.json()["user"] == "bob"
    asked = {"model": "echo", "messages": [{"role": "user", "content": "hi"}], "user": "an end user of ann's"}
    held = await client.post("/v1/chat/completions", json=asked, headers={**ann, "Prefer": "respond-async"})
    assert held.json()["user"] == "ann"


async def test_the_same_idempotency_key_of_two_keys_makes_two_jobs(client: httpx.AsyncClient, keys: ApiKeys) -> None:
    ids = set()
    for text in (await text_of(keys, "one", owner="ann"), await text_of(keys, "two", owner="ann")):
        for _ in range(2):
            made = await client.post("/v1/jobs", json=GENERATION, headers={**bearer(text), "Idempotency-Key": "same"})
            ids.add(made.json()["id"])
    assert len(ids) == 2


async def test_a_key_was_used_when_it_was_used(client: httpx.AsyncClient, keys: ApiKeys) -> None:
    text = await text_of(keys)
    assert (await keys.get(text[3:15])).used_ms == 0
    await client.get("/v1/jobs", headers=bearer(text))
    deadline = time.monotonic() + 5
    while not (await keys.get(text[3:15])).used_ms:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


class Counted(ApiKeys):
    """Keys that count how often Redis is asked, and do not answer while they are away."""

    asked = 0
    away = False

    async def look(self, key_id: str) -> Any:
        self.asked += 1
        await asyncio.sleep(0.01)
        if self.away:
            raise StoreUnavailable("test")
        return await super().look(key_id)


async def test_redis_is_asked_once_for_a_crowd_and_then_not_for_a_while(settings: Settings, keys: ApiKeys) -> None:
    text = await text_of(keys)
    counted = Counted(keys.redis, settings)
    door = Authenticator(counted, settings.model_copy(update={"key_cache_s": 30.0}), always=False)
    crowd = await asyncio.gather(*(door.principal(text) for _ in range(50)))
    assert {one.owner for one in crowd} == {"ann"}
    assert counted.asked == 1
    await door.principal(text)
    unknown = new_key().text
    for _ in range(5):
        with pytest.raises(Exception, match="not valid"):
            await door.principal(unknown)
    assert counted.asked == 2


async def test_a_revoked_key_works_no_longer_than_its_record_is_trusted(settings: Settings, keys: ApiKeys) -> None:
    text = await text_of(keys)
    door = Authenticator(keys, settings.model_copy(update={"key_cache_s": 0.3}), always=False)
    await door.principal(text)
    await keys.revoke(text[3:15], "test")
    revoked = time.monotonic()
    while await gets_in(door, text):
        assert time.monotonic() - revoked < 0.6
        await asyncio.sleep(0.01)


async def gets_in(door: Authenticator, text: str) -> bool:
    """Whether a key is good."""
    try:
        await door.principal(text)
    except NotAuthenticated:
        return False
    return True


async def test_while_redis_is_away_a_known_key_goes_on_and_no_other_gets_in(settings: Settings, keys: ApiKeys) -> None:
    text, other = await text_of(keys), await text_of(keys, "bob")
    counted = Counted(keys.redis, settings)
    door = Authenticator(counted, settings, always=False)
    await door.principal(text)
    counted.away = True
    assert (await door.principal(text)).owner == "ann"
    with pytest.raises(StoreUnavailable):
        await door.principal(other)


async def test_a_server_that_cannot_know_whether_there_are_keys_lets_nobody_in(settings: Settings) -> None:
    nowhere = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    client = scripts.connect(nowhere)
    with pytest.raises(StoreUnavailable):
        await Authenticator(ApiKeys(client, nowhere), nowhere, always=False).principal(None)
    await client.aclose()
