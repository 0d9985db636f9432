"""What lies in Redis is not believed, no tenant finds out about another, and nothing private gets into logs or metrics.

Acceptance test 15.
"""

from __future__ import annotations

import base64
import os
import pickle  # to write what we must never load
from pathlib import Path
from typing import Any

import httpx
import msgspec

from common.access import NewKey
from common.api_keys import ApiKeys
from common.jobs import JobSpec
from common.states import State
from tests.faults import tenants
from tests.faults.formation import SCHEDULER, WEB, Formation
from tests.waiting import until

PROMPT = "whisper-of-the-tests-4711"
SECRET = "whsec_" + base64.b64encode(b"a secret of the tests, 32 bytes.").decode()


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def poisons(canary: Path) -> list[bytes]:
    """What somebody with access to Redis might leave where a job's work or result stands."""
    return [
        *(pickle.dumps(Canary(canary), protocol) for protocol in (0, 2, 5)),
        b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR.",
        b"\xff\xfe\x00" * 1000,
        b"[" * 100_000,
        b'{"input":{"prompt":"' + b"x" * 20_000_000 + b'"}}',
        b'{"input":{"prompt":"from another version"},"v":99}',
        msgspec.msgpack.encode({"input": {"prompt": "x"}}),
        b"",
    ]


async def forge(formation: Formation, job: str, field: str, value: bytes) -> None:
    call: Any = formation.queue.redis.execute_command
    await call("HSET", formation.queue.keys.job(job), field, value)


def spec(**more: Any) -> JobSpec:
    params = {"max_tokens": 3}
    return JobSpec(kind="generation", model="chat", input={"prompt": "count"}, params=params, **more)


async def test_15_what_is_forged_in_redis_is_never_run_and_costs_no_process(formation: Formation) -> None:
    canary = formation.folder / "canary"
    bad = poisons(canary)
    jobs = [one.id for one in await formation.queue.submit_many([spec(max_attempts=1) for _ in range(len(bad) + 1)])]
    forged, sound = jobs[:-1], jobs[-1]
    for job, garbage in zip(forged, bad, strict=True):
        await forge(formation, job, "work", garbage)
    for stream in [key async for key in formation.queue.redis.scan_iter("*:s:*")]:
        await formation.queue.redis.xadd(stream, {b"junk": bad[0], b"j": bad[3]})
    worker, web = formation.start("workers", "generation"), formation.start(*WEB)
    scheduler = formation.start(*SCHEDULER)
    [record] = await formation.ends([sound])
    assert record.status == State.COMPLETED
    failed = await formation.ends(forged)
    assert [one.status for one in failed] == [State.FAILED] * len(bad)
    assert {one.error.code for one in failed if one.error} == {"unreadable"}
    async with formation.client() as client:
        await formation.web_answers(client)
        for garbage in bad:
            await forge(formation, sound, "result", garbage)
            await client.get(f"/v1/jobs/{sound}/result")
            assert (await client.get(f"/v1/jobs/{sound}")).status_code == 200
        again = await client.post("/v1/jobs", json=msgspec.to_builtins(body()), headers={"prefer": "wait=30"})
        assert again.json()["status"] == "completed"
    assert not canary.exists()
    assert worker.exits == web.exits == scheduler.exits == []


def body(**more: Any) -> dict[str, Any]:
    params = {"max_tokens": 3}
    return {"kind": "generation", "model": "chat", "input": {"prompt": PROMPT}, "params": params, **more}


async def test_15_no_prompt_and_no_secret_is_in_a_log_or_a_metric(formation: Formation) -> None:
    formation.start("workers", "generation", "--verbose", log_level="debug")
    formation.start(*WEB, log_level="debug")
    formation.start(*SCHEDULER, log_level="debug")
    formation.start("workers", "delivery", log_level="debug", webhook_retry_s="[0.0,0.1]")
    hook = {"url": "https://127.0.0.1:9/of-the-tests", "secret": SECRET}
    async with formation.client() as client:
        await formation.web_answers(client)
        asked = [
            client.post("/v1/jobs", json=body(), headers={"prefer": "wait=30"}),
            client.post("/v1/jobs", json=body(params={"max_tokens": PROMPT})),
            client.post("/v1/jobs", json=body(unknown=PROMPT)),
            client.post("/v1/jobs", content=PROMPT + SECRET, headers={"content-type": "application/json"}),
            client.post("/v1/jobs", json=body(webhook=hook), headers={"prefer": "wait=30"}),
            client.post("/v1/jobs", json=body(webhook={**hook, "url": "ftp://x"})),
            client.post(
                "/v1/chat/completions", json={"model": "chat", "messages": [{"role": "user", "content": PROMPT}]}
            ),
            client.post("/v1/embeddings", json={"model": "vectors", "input": [PROMPT, 5]}),
            client.get("/v1/jobs", params={"status": PROMPT}, headers={"authorization": f"Bearer {SECRET}"}),
            client.post("/v1/webhook_endpoints", json={"url": "https://example.org", "secret": SECRET}),
        ]
        statuses = [(await one).status_code for one in asked]
        assert 200 in statuses
        assert max(statuses) < 500
        metrics = (await client.get("/metrics")).text
        await until(lambda: _logged(formation, "completed"), "debug logs tell of moves")
    for text in (metrics, *(path.read_text() for path in formation.folder.glob("*.log"))):
        for private in (PROMPT, SECRET, SECRET.removeprefix("whsec_")):
            at = text.find(private)
            assert at < 0, text[max(0, at - 500) : at + 100]


def _logged(formation: Formation, word: str) -> bool:
    return any(word in path.read_text() for path in formation.folder.glob("*.log"))


async def test_15_nothing_tells_another_tenants_things_from_those_that_nobody_has(formation: Formation) -> None:
    keys = ApiKeys(formation.queue.redis, formation.settings)
    ann, bob = await tenants.keys_of(keys, "ann"), await tenants.keys_of(keys, "bob")
    formation.start(*WEB, log_level="debug")
    named, lists = tenants.addresses(formation.settings)
    async with formation.client() as client:
        await formation.web_answers(client)
        theirs = await tenants.things_of(client, bob[0], PROMPT, SECRET)
        nobodys = tenants.unknown(theirs)
        assert theirs.keys() | set(tenants.EVERYBODYS) | set(tenants.ADMINS) == {address.name for address in named}

        prober = tenants.Prober(client, ann)
        found: list[str] = []
        for address in named:
            if address.name in theirs:
                found += await prober.differences(address, theirs[address.name], nobodys[address.name])
        assert not found, "\n".join(found)
        await nobody_gets_by_naming_it_in_a_body(client, ann, theirs, nobodys)
        await lists_have_what_is_ones_own(client, ann, bob, theirs, lists)
        for address in named:
            if address.name in tenants.ADMINS:
                refused = await client.request(
                    address.method, address.of(bob[0].id), headers=tenants.bearer(ann[0]), json={}
                )
                assert refused.status_code == 403, address
        # What was asked for in vain is there still, for its owner, by whichever of his keys.
        for number, key in enumerate(bob):
            path = ("/v1/jobs/", "/v1/files/", "/v1/batches/", "/v1/responses/", "/v1/webhook_deliveries/")[number % 5]
            name = ("job_id", "file_id", "batch_id", "response_id", "delivery_id")[number % 5]
            assert (await client.get(path + theirs[name], headers=tenants.bearer(key))).status_code == 200
        for key in ann:
            assert (await client.get(f"/v1/jobs/{theirs['job_id']}", headers=tenants.bearer(key))).status_code == 404
    logs = [path.read_bytes() for path in formation.folder.glob("*.log")]
    await formation.queue.redis.config_set("rdbcompression", "no")  # compressed, a text is in pieces
    dump = [await formation.queue.redis.dump(name) for name in await formation.queue.redis.keys("*")]
    assert any(PROMPT.encode() in (kept or b"") for kept in dump)
    for kept in (*logs, *filter(None, dump)):
        assert not any(key.text[16:].encode() in kept for key in (*ann, *bob))
    assert not any(private.encode() in log for log in logs for private in (PROMPT, SECRET.removeprefix("whsec_")))


async def nobody_gets_by_naming_it_in_a_body(
    client: httpx.AsyncClient, keys: list[NewKey], theirs: dict[str, str], nobodys: dict[str, str]
) -> None:
    """Ids that a caller puts into a request lead nowhere either."""
    batch = {"endpoint": "/v1/embeddings", "completion_window": "24h"}
    for number, (path, name, field, rest) in enumerate(
        (
            ("/v1/batches", "file_id", "input_file_id", batch),
            ("/v1/responses", "response_id", "previous_response_id", {"model": "chat", "input": "go on"}),
        )
    ):
        answers = []
        for thing in (theirs[name], nobodys[name]):
            response = await client.post(path, json={**rest, field: thing}, headers=tenants.bearer(keys[number]))
            answers.append((response.status_code, response.text.replace(thing, "ID")))
        assert answers[0] == answers[1]
        assert answers[0][0] in (400, 404)


async def lists_have_what_is_ones_own(
    client: httpx.AsyncClient,
    ann: list[NewKey],
    bob: list[NewKey],
    theirs: dict[str, str],
    lists: list[tenants.Address],
) -> None:
    """No list of one tenant has anything of the other one; the other one's lists have all of it."""
    seen = ""
    for number, address in enumerate(lists):
        mine = await client.get(address.path, headers=tenants.bearer(ann[number % len(ann)]))
        assert mine.status_code in (200, 307, 403), address
        assert not any(thing in mine.text for thing in theirs.values()), address
        if address.path != "/openapi.json":
            assert "bob" not in mine.text, address
        seen += (await client.get(address.path, headers=tenants.bearer(bob[number % len(bob)]))).text
    assert all(thing in seen for name, thing in theirs.items() if name != "response_id")
