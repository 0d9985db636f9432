"""What webhooks say and how they are signed: Standard Webhooks 1.0.0, with OpenAI's thin events inside.

A secret never leaves through a log, a `repr` or an answer, but for the answer that makes it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable
from typing import Any, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

#: Every event there is: what ended, and how.
EVENT_TYPES = (
    *("job.completed", "job.incomplete", "job.failed", "job.cancelled", "job.expired"),
    *("response.completed", "response.incomplete", "response.failed", "response.cancelled"),
    *("batch.completed", "batch.failed", "batch.expired", "batch.cancelled"),
)
HMAC, ED25519, ED25519_PUBLIC = "whsec_", "whsk_", "whpk_"
SECRET_ALLOWED = f"{HMAC} and base64 of 24 to 64 random bytes, or {ED25519} and base64 of an ed25519 key"
Payload = Literal["thin", "full"]


class Hook(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where one job's end is told. `subject` is what ended in its reader's eyes, if not the job itself."""

    url: str | None = None
    secret: str = ""
    events: tuple[str, ...] | None = None  # None: whatever the end is
    payload: Payload = "thin"
    subject: Literal["response", "line"] | None = None  # line: one of a batch, of which nobody is told

    def __repr__(self) -> str:
        return f"Hook({self.payload})"


def new_secret() -> str:
    """A secret for HMAC-SHA256."""
    return HMAC + base64.b64encode(secrets.token_bytes(32)).decode()


def new_key() -> str:
    """A private key for ed25519, as libsodium writes it: the seed, then the public key."""
    key = Ed25519PrivateKey.generate()
    return ED25519 + base64.b64encode(key.private_bytes_raw() + key.public_key().public_bytes_raw()).decode()


def check_secret(text: str) -> None:
    """Raise ValueError for what cannot be a secret; the message does not show it."""
    prefix = next((p for p in (HMAC, ED25519) if text.startswith(p)), None)
    if prefix is None:
        raise ValueError(f"allowed: {SECRET_ALLOWED}")
    try:
        size = len(base64.b64decode(text.removeprefix(prefix), validate=True))
    except (binascii.Error, ValueError):
        size = 0
    if not (24 <= size <= 64 if prefix == HMAC else size in (32, 64)):
        raise ValueError(f"allowed: {SECRET_ALLOWED}")


def public_key(secret: str) -> str | None:
    """What a receiver verifies with, when the secret is an ed25519 key."""
    if not secret.startswith(ED25519):
        return None
    raw = _private(secret).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return ED25519_PUBLIC + base64.b64encode(raw).decode()


def hint(secret: str) -> str:
    """What tells a secret from another one without telling it."""
    return f"{secret.partition('_')[0]}_…{secret[-4:]}"


def _private(secret: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(base64.b64decode(secret.removeprefix(ED25519))[:32])


def signature(secret: str, event_id: str, at: int, body: bytes) -> str:
    """One signature of a delivery, with its version in front."""
    signed = b"%s.%d.%s" % (event_id.encode(), at, body)
    if secret.startswith(ED25519):
        return "v1a," + base64.b64encode(_private(secret).sign(signed)).decode()
    key = base64.b64decode(secret.removeprefix(HMAC))
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def headers_of(event_id: str, at: int, body: bytes, valid: Iterable[str]) -> dict[str, str]:
    """The headers of one attempt, signed with every secret that is valid; none is valid: unsigned."""
    signatures = " ".join(signature(secret, event_id, at, body) for secret in valid)
    return {
        "content-type": "application/json",
        "user-agent": "Jarvis-Webhooks/1",
        "webhook-id": event_id,
        "webhook-timestamp": str(at),
        **({"webhook-signature": signatures} if signatures else {}),
    }


def event_body(event_id: str, kind: str, at_ms: int, data: dict[str, Any]) -> bytes:
    """An event as it is sent: OpenAI's shape, with Standard Webhooks' timestamp beside its own."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_ms // 1000))
    document = {
        "id": event_id,
        "object": "event",
        "type": kind,
        "created_at": at_ms // 1000,
        "timestamp": f"{moment}.{at_ms % 1000:03d}Z",
        "data": data,
    }
    return msgspec.json.encode(document)
