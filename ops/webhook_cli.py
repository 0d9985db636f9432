"""`jarvis webhooks`: standing endpoints, and what became of each delivery."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops import tables
from ops.screen import note
from ops.server import DEFAULT_URL, NOT_COMPLETED, AsJson, Url, connected, show_answer

if TYPE_CHECKING:
    from ops.client import Json
    from ops.webhook_client import WebhookClient

DAY_S = 86_400.0
ENDPOINT_HEAD = ("ID", "STATUS", "USER", "URL", "EVENTS", "NAME", "AGE")
DELIVERY_HEAD = ("ID", "STATUS", "EVENT", "ABOUT", "ATTEMPTS", "NEXT IN", "AGE")

app = typer.Typer(
    help="Tell other programs of jobs that have ended: endpoints, and what became of each delivery.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
EndpointId = Annotated[str, typer.Argument(metavar="ID", help="An endpoint's id.")]
DeliveryId = Annotated[str, typer.Argument(metavar="ID", help="A delivery's id.")]
User = Annotated[str | None, typer.Option(help="Whose.")]
Events = Annotated[list[str] | None, typer.Option("--event", help="Which events; may be repeated.  [default: all]")]


@app.command()
def create(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="An https:// address of a public host.")],
    event: Events = None,
    name: Annotated[str | None, typer.Option(help="What you call it.")] = None,
    user: User = None,
    full: Annotated[bool, typer.Option("--full", help="Send records and results, not only ids.")] = False,
    ed25519: Annotated[bool, typer.Option("--ed25519", help="Sign with a key pair in place of a secret.")] = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Make an endpoint, and print its id and its secret, which is shown once."""
    body = {
        "url": address,
        "event_types": event or ["*"],
        "name": name,
        "user": user,
        "payload": "full" if full else None,
        "signature": "ed25519" if ed25519 else None,
    }
    with _server(url, as_json) as client:
        made = client.create_endpoint({key: value for key, value in body.items() if value is not None})
    _show_secret(made, as_json)


@app.command("list")
def list_endpoints(user: User = None, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List endpoints, newest first."""
    with _server(url, as_json) as client:
        page = client.endpoints(user)
    show_answer(page, "\n".join(tables.table(ENDPOINT_HEAD, [_endpoint_row(one) for one in page["data"]])), as_json)


@app.command()
def show(endpoint_id: EndpointId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show an endpoint."""
    with _server(url, as_json) as client:
        found = client.endpoint(endpoint_id)
    names = ("id", "status", "disabled_reason", "user", "url", "name", "payload", "signature", "public_key")
    facts = [(name, found.get(name)) for name in names]
    facts += [("event_types", " ".join(found["event_types"])), ("secrets_valid", found["secrets_valid"])]
    show_answer(found, "\n".join(f"{name:<16} {value}" for name, value in facts if value), as_json)


@app.command()
def update(
    endpoint_id: EndpointId,
    address: Annotated[str | None, typer.Option(help="Another address.")] = None,
    event: Events = None,
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
    payload: Annotated[str | None, typer.Option(help="thin or full.")] = None,
    enable: Annotated[bool | None, typer.Option("--enable/--disable", help="Switch it on or off.")] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Change an endpoint."""
    body = {"url": address, "event_types": event or None, "name": name, "payload": payload, "enabled": enable}
    with _server(url, as_json) as client:
        changed = client.change_endpoint(endpoint_id, {key: value for key, value in body.items() if value is not None})
    show_answer(changed, f"{endpoint_id} {changed['status']}", as_json)


@app.command()
def delete(endpoint_id: EndpointId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Remove an endpoint. What waits for it is not sent."""
    with _server(url, as_json) as client:
        gone = client.delete_endpoint(endpoint_id)
    show_answer(gone, f"{endpoint_id} deleted", as_json)


@app.command()
def rotate(
    endpoint_id: EndpointId,
    keep_old_s: Annotated[
        float, typer.Option("--keep-old-s", min=0, help="The old one signs too for so long.")
    ] = DAY_S,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Make a new secret, and print it; both sign until the old one ends."""
    with _server(url, as_json) as client:
        rotated = client.rotate_secret(endpoint_id, keep_old_s)
    _show_secret(rotated, as_json)


@app.command("test")
def send_sample(
    endpoint_id: EndpointId,
    event: Annotated[str, typer.Option(help="Which kind of event.")] = "job.completed",
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Send an endpoint a sample, once, and print what its receiver answered."""
    with _server(url, as_json) as client:
        tried = client.test_endpoint(endpoint_id, event)
    show_answer(tried, str(tried["status_code"]), as_json)
    if not 200 <= tried["status_code"] < 300:
        raise typer.Exit(NOT_COMPLETED)


@app.command()
def deliveries(
    state: Annotated[str | None, typer.Option("--status", help="pending, delivered or failed.")] = None,
    user: User = None,
    endpoint: Annotated[str | None, typer.Option(help="To this endpoint.", metavar="ID")] = None,
    job: Annotated[str | None, typer.Option(help="Of this job.", metavar="ID")] = None,
    limit: Annotated[int | None, typer.Option(min=1, max=200, help="Longest list.")] = None,
    after: Annotated[str | None, typer.Option(help="Where the page before ended.", metavar="CURSOR")] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List deliveries, newest first."""
    with _server(url, as_json) as client:
        page = client.deliveries(status=state, user=user, endpoint=endpoint, job=job, limit=limit, after=after)
    show_answer(page, "\n".join(tables.table(DELIVERY_HEAD, [_delivery_row(one) for one in page["data"]])), as_json)
    if page.get("next") and not as_json:
        note(f"more: --after {page['next']}")


@app.command()
def delivery(delivery_id: DeliveryId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show a delivery and its last attempts."""
    with _server(url, as_json) as client:
        found = client.delivery(delivery_id)
    names = ("id", "status", "type", "event", "subject", "user", "endpoint", "url", "attempts")
    lines = [f"{name:<10} {found[name]}" for name in names if found.get(name) is not None]
    show_answer(found, "\n".join([*lines, *(_attempt(one) for one in found["log"])]), as_json)


@app.command()
def redeliver(delivery_id: DeliveryId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Send a delivery again now, whatever became of it. Its event keeps its id."""
    with _server(url, as_json) as client:
        again = client.redeliver(delivery_id)
    show_answer(again, f"{delivery_id} {again['status']}", as_json)


def _endpoint_row(one: Json) -> list[Any]:
    names = ("id", "status", "user", "url")
    return [
        *(one.get(name) for name in names),
        " ".join(one["event_types"]),
        one.get("name"),
        tables.age(one["created_at"]),
    ]


def _delivery_row(one: Json) -> list[Any]:
    following = one.get("next_attempt_at")
    waits = None if following is None else tables.seconds(max(0.0, following - time.time()))
    names = ("id", "status", "type", "subject", "attempts")
    return [*(one.get(name) for name in names), waits, tables.age(one["created_at"])]


def _attempt(one: Json) -> str:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["at"]))
    outcome = one.get("error") or f"status {one.get('status')}"
    where = one.get("address") or "no connection"
    return f"{at}   {outcome}, {one['took_ms']} ms, {where}  {one.get('shown') or ''}".rstrip()


def _show_secret(made: Json, as_json: bool) -> None:
    words = [made["id"], made["signing_secret"], *([made["public_key"]] if made.get("public_key") else [])]
    show_answer(made, "\n".join(words), as_json)
    if not as_json:
        note("the secret is not shown again")


def _server(url: str, as_json: bool) -> AbstractContextManager[WebhookClient]:
    from ops.webhook_client import WebhookClient

    return connected(WebhookClient, url, as_json)
