"""What webhooks say and how they are signed, judged by the reference library and by OpenAI's SDK."""

from __future__ import annotations

import base64
import json
import time

import openai
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from common.endpoints import Endpoint, Secret
from common.webhooks import (
    ED25519_PUBLIC,
    Hook,
    check_secret,
    event_body,
    headers_of,
    hint,
    new_key,
    new_secret,
    public_key,
)

EVENT = "evt_00abc"
BODY = event_body(EVENT, "response.completed", 1_719_168_000_123, {"id": "resp_1"})


def test_a_delivery_verifies_with_the_reference_library() -> None:
    secret = new_secret()
    headers = headers_of(EVENT, int(time.time()), BODY, [secret])
    assert Webhook(secret).verify(BODY, headers)["data"] == {"id": "resp_1"}


def test_while_a_secret_is_rotated_a_delivery_verifies_with_either() -> None:
    old, new = new_secret(), new_secret()
    headers = headers_of(EVENT, int(time.time()), BODY, [new, old])
    for secret in (old, new):
        Webhook(secret).verify(BODY, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(BODY, headers)


def test_a_delivery_that_is_older_than_five_minutes_is_refused_by_its_receiver() -> None:
    secret = new_secret()
    headers = headers_of(EVENT, int(time.time()) - 301, BODY, [secret])
    with pytest.raises(WebhookVerificationError, match="too old"):
        Webhook(secret).verify(BODY, headers)


def test_a_changed_body_does_not_verify() -> None:
    secret = new_secret()
    headers = headers_of(EVENT, int(time.time()), BODY, [secret])
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(BODY.replace(b"resp_1", b"resp_2"), headers)


def test_openais_sdk_unwraps_a_delivery() -> None:
    secret = new_secret()
    headers = headers_of(EVENT, int(time.time()), BODY, [new_secret(), secret])
    with openai.OpenAI(api_key="x", webhook_secret=secret) as client:
        event = client.webhooks.unwrap(BODY, headers)
        assert event.type == "response.completed"
        assert (event.id, event.created_at, event.data.id) == (EVENT, 1_719_168_000, "resp_1")
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.unwrap(BODY + b" ", headers)


def test_an_ed25519_signature_verifies_with_the_public_key() -> None:
    key = new_key()
    headers = headers_of(EVENT, 1_719_168_000, BODY, [key])
    version, _, signature = headers["webhook-signature"].partition(",")
    assert version == "v1a"
    public = public_key(key)
    assert public is not None
    verifier = Ed25519PublicKey.from_public_bytes(base64.b64decode(public.removeprefix(ED25519_PUBLIC)))
    signed = f"{EVENT}.1719168000.".encode() + BODY
    verifier.verify(base64.b64decode(signature), signed)
    with pytest.raises(InvalidSignature):
        verifier.verify(base64.b64decode(signature), signed + b" ")


def test_an_event_has_openais_fields_and_those_of_standard_webhooks() -> None:
    document = json.loads(BODY)
    assert document == {
        "id": EVENT,
        "object": "event",
        "type": "response.completed",
        "created_at": 1_719_168_000,
        "timestamp": "2024-06-23T18:40:00.123Z",
        "data": {"id": "resp_1"},
    }


@pytest.mark.parametrize(
    "text", ["", "hello", "whsec_", "whsec_!!!", "whsec_c2hvcnQ=", "whsk_c2hvcnQ=", "whpk_" + "A" * 44]
)
def test_what_is_no_secret_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(ValueError, match="allowed: whsec_") as refused:
        check_secret(text)
    assert len(text) < 10 or text not in str(refused.value)


def test_no_secret_shows_in_what_python_prints() -> None:
    secret = new_secret()
    endpoint = Endpoint(
        id="we_1", user="ann", url="https://example.org", secrets=(Secret(secret),), created_at=0, updated_at=0
    )
    hook = Hook("https://example.org/?token=abc", secret)
    assert secret not in f"{hook!r} {endpoint!r} {hint(secret)}"
    assert "token" not in repr(hook)


def test_an_old_secret_signs_until_its_time_is_over() -> None:
    endpoint = Endpoint(
        id="we_1", user="ann", url="https://example.org", secrets=(Secret("a"),), created_at=0, updated_at=0
    )
    rotated = endpoint.rotated("b", 100, now=1000)
    assert (rotated.valid(1099), rotated.valid(1101)) == (["b", "a"], ["b"])
    again = rotated.rotated("c", 0, now=1050)
    assert again.valid(1051) == ["c", "a"]
