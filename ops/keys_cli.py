"""`jarvis keys`: make, list, change and revoke API keys, on the machine where Redis is at hand.

They go to Redis themselves, as the settings say where it is: whoever reaches Redis may do all anyway, and the first key
has to come from somewhere.
"""

from __future__ import annotations

import asyncio
import getpass
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from common.errors import InvalidField, JarvisError, SettingsInvalid, StoreUnavailable
from ops import tables
from ops.screen import note
from ops.server import NO_SERVER, NOT_COMPLETED, USAGE, AsJson, show_answer

if TYPE_CHECKING:
    from common.access import ApiKey
    from common.api_keys import ApiKeys

HEAD = ("ID", "NAME", "OWNER", "TIER", "SCOPES", "STATUS", "LIMITS", "USED", "AGE")
AUDIT_HEAD = ("AGE", "WHO", "DID", "TO", "OWNER", "DETAIL")
SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}

app = typer.Typer(
    help="API keys: make them, list them, change what they may use, revoke them.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
KeyId = Annotated[str, typer.Argument(metavar="ID", help="A key's id: what stands between jv_ and the next _.")]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        help="requests=100/3600s, tokens=100k/1d, in_progress=4, weight=2, …; may be repeated.",
        metavar="LIMIT",
    ),
]
Answer = TypeVar("Answer")


@app.command()
def create(
    name: Annotated[str, typer.Option(help="What you call it.")],
    tier: Annotated[str, typer.Option(help="free, premium, custom, or another of JARVIS_TIERS.")],
    owner: Annotated[
        str | None, typer.Option(help="Whose jobs its jobs are; keys of one owner see the same.  [default: the name]")
    ] = None,
    limit: Limits = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="jobs, admin, metrics; may be repeated.  [default: jobs]")
    ] = None,
    expires: Annotated[str | None, typer.Option(help="How long it counts: 30d, 12h.", metavar="TIME")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it: that is the only time it can be seen.

    jarvis keys create --name app --tier free --limit tokens=100k/1d --expires 30d
    """
    from common.api_keys import Asked, key_out

    expires_s = None if expires is None else span_s("--expires", expires)
    scopes = tuple(dict.fromkeys(scope or ["jobs"]))
    asked = Asked(name=name, tier=tier, owner=owner, limits=tuple(limit or ()), scopes=scopes, expires_s=expires_s)

    async def made(keys: ApiKeys) -> tuple[dict[str, Any], str]:
        found = await keys.create(asked, actor())
        assert found
        return key_out(found[0], keys.settings), found[1].text

    document, text = _with_keys(made)
    show_answer({**document, "key": text}, text, as_json)
    if not as_json:
        note(f"{_words(document)}\nIt is not shown again.")


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List all keys, newest first."""
    from common.api_keys import key_out

    async def listed(keys: ApiKeys) -> list[dict[str, Any]]:
        return [key_out(one, keys.settings) for one in (await keys.all())[::-1]]

    found = _with_keys(listed)
    words = "\n".join(tables.table(HEAD, [_row(one) for one in found]))
    show_answer({"object": "list", "data": found}, words, as_json)


@app.command()
def rotate(
    key_id: KeyId,
    grace: Annotated[
        str, typer.Option(help="How long the old secret counts beside the new one; 0: not at all.")
    ] = "24h",
    as_json: AsJson = False,
) -> None:
    """Give a key another secret and print the key: that is the only time it can be seen.

    Jobs, limits and usage are the key's as before: its id stays.
    """
    from common.api_keys import key_out

    grace_s = span_s("--grace", grace)

    async def rotated(keys: ApiKeys) -> tuple[dict[str, Any], str]:
        one, new = await keys.rotate(key_id, grace_s, actor())
        return key_out(one, keys.settings), new.text

    document, text = _with_keys(rotated)
    show_answer({**document, "key": text}, text, as_json)
    if not as_json:
        until = f"the old one counts for {tables.seconds(grace_s)} more" if grace_s else "the old one counts no more"
        note(f"{_words(document)}\nIt is not shown again; {until}.")


@app.command()
def revoke(key_id: KeyId, as_json: AsJson = False) -> None:
    """Revoke a key, for ever. Its jobs go on; servers refuse it within JARVIS_KEY_CACHE_S (2 s)."""
    _change(lambda keys: keys.revoke(key_id, actor()), as_json)


@app.command()
def limits(
    key_id: KeyId,
    limit: Limits = None,
    tier: Annotated[str | None, typer.Option(help="Another tier.")] = None,
    as_json: AsJson = False,
) -> None:
    """Replace a key's own limits; without --limit it has only its tier's."""
    _change(lambda keys: keys.set_limits(key_id, tier, tuple(limit or ()), actor()), as_json)


@app.command()
def audit(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Longest list.")] = 50, as_json: AsJson = False
) -> None:
    """Show who made, rotated, revoked or changed which key, and what admins did to others' things; newest first."""

    async def audited(keys: ApiKeys) -> list[dict[str, Any]]:
        from msgspec.structs import asdict

        return [asdict(one) for one in await keys.audited(limit=limit)]

    found = _with_keys(audited)
    rows = [[tables.age(one["at"]), *(one[name] for name in AUDITED), _detail(one["detail"])] for one in found]
    show_answer({"object": "list", "data": found}, "\n".join(tables.table(AUDIT_HEAD, rows)), as_json)


AUDITED = ("actor", "action", "thing", "owner")


def actor() -> str:
    """Who does this, for the audit."""
    try:
        return f"cli:{getpass.getuser()[:60]}"
    except (OSError, KeyError):  # a container's user without a name
        return "cli:unknown"


def _change(change: Callable[[ApiKeys], Awaitable[ApiKey]], as_json: bool) -> None:
    from common.api_keys import key_out

    async def changed(keys: ApiKeys) -> dict[str, Any]:
        return key_out(await change(keys), keys.settings)

    document = _with_keys(changed)
    show_answer(document, _words(document), as_json)


def _with_keys(work: Callable[[ApiKeys], Awaitable[Answer]]) -> Answer:
    from common.api_keys import ApiKeys
    from common.scripts import connect
    from common.settings import load_settings, mask

    async def done() -> Answer:
        client = connect(settings)
        try:
            return await work(ApiKeys(client, settings))
        finally:
            await client.aclose()

    try:
        settings = load_settings()
        return asyncio.run(done())
    except StoreUnavailable as error:
        note(f"no Redis at {mask(settings.redis_url)}: start it with make run ({error})")
        raise typer.Exit(NO_SERVER) from None
    except (InvalidField, SettingsInvalid) as error:
        note(str(error))
        raise typer.Exit(USAGE) from None
    except JarvisError as error:
        note(str(error))
        raise typer.Exit(NOT_COMPLETED) from None


def span_s(option: str, text: str) -> float:
    found = SPAN.fullmatch(text)
    if not found:
        note(f"{option} is {text!r}; allowed: a number of s, m, h or d, e.g. 24h or 30d")
        raise typer.Exit(USAGE)
    return float(found[1]) * UNITS[found[2]]


def _words(one: dict[str, Any]) -> str:
    effective = one["effective_limits"]
    shown = ", ".join(effective) or "none" if effective is not None else "unknown: its tier is not in JARVIS_TIERS"
    facts = {name: one[name] for name in ("id", "name", "owner", "tier", "status")}
    facts |= {"scopes": ", ".join(one["scopes"]), "limits": shown}
    return "\n".join(f"{name:<8} {value}" for name, value in facts.items())


def _row(one: dict[str, Any]) -> list[Any]:
    names = ("id", "name", "owner", "tier")
    used = tables.age(one["last_used_at"]) if one["last_used_at"] else None
    own = " ".join(one["limits"])
    return [
        *(one[name] for name in names),
        ",".join(one["scopes"]),
        one["status"],
        own,
        used,
        tables.age(one["created_at"]),
    ]


def _detail(detail: dict[str, Any]) -> str:
    return " ".join(f"{name}={_flat(value)}" for name, value in detail.items() if value not in (None, [], {}))


def _flat(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
