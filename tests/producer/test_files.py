"""Files over HTTP: kept, listed, read, deleted, refused."""

from __future__ import annotations

import httpx
import pytest

from common.settings import Settings
from producer.app import create_app
from tests.producer.batching import settings, upload

__all__ = ["settings"]  # a fixture


async def test_a_file_is_kept_listed_read_and_deleted(client: httpx.AsyncClient) -> None:
    first = (await upload(client, b"one\n")).json()
    second = (await upload(client, b"two\n", purpose="user_data")).json()
    assert first["object"] == "file"
    assert (first["bytes"], first["filename"], first["purpose"]) == (4, "lines.jsonl", "batch")
    assert first["status"] == "processed"
    assert first["expires_at"] == first["created_at"] + 30 * 86_400
    assert (await client.get(f"/v1/files/{first['id']}")).json() == first
    listed = (await client.get("/v1/files")).json()
    assert [one["id"] for one in listed["data"]] == [second["id"], first["id"]]
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == (second["id"], first["id"], False)
    assert [one["id"] for one in (await client.get("/v1/files?order=asc")).json()["data"]] == [
        first["id"],
        second["id"],
    ]
    assert [one["id"] for one in (await client.get("/v1/files?purpose=batch")).json()["data"]] == [first["id"]]
    page = (await client.get("/v1/files?limit=1")).json()
    assert page["has_more"]
    following = (await client.get(f"/v1/files?limit=1&after={page['last_id']}")).json()
    assert [one["id"] for one in following["data"]] == [first["id"]]
    assert (await client.get(f"/v1/files/{first['id']}/content")).content == b"one\n"
    gone = (await client.delete(f"/v1/files/{first['id']}")).json()
    assert gone == {"id": first["id"], "object": "file", "deleted": True}
    for answer in (await client.get(f"/v1/files/{first['id']}"), await client.delete(f"/v1/files/{first['id']}")):
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_found"


async def test_a_file_says_when_it_goes(client: httpx.AsyncClient) -> None:
    file = await upload(client, b"x", **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"})
    assert file.json()["expires_at"] == file.json()["created_at"] + 3600


@pytest.mark.parametrize(
    ("given", "fields", "status", "param"),
    [
        (b"x", {"purpose": "assistants"}, 400, "purpose"),
        (b"x", {"purpose": "batch_output"}, 400, "purpose"),
        (b"x", {"expires_after[seconds]": "60"}, 400, "seconds"),
        (b"x", {"colour": "red"}, 400, "colour"),
        (b"", {}, 400, "file"),
        (b"x" * 300_001, {}, 413, "file"),
    ],
)
async def test_a_file_that_is_not_acceptable_is_refused_by_name(
    client: httpx.AsyncClient, given: bytes, fields: dict[str, str], status: int, param: str
) -> None:
    answer = await upload(client, given, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert (await client.get("/v1/files")).json()["data"] == []


async def test_there_are_no_more_files_than_may_be(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"max_files": 1}))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        assert (await upload(client, b"one")).status_code == 200
        assert (await upload(client, b"two")).status_code == 429
