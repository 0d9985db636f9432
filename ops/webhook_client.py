"""The command line's calls about webhooks."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from ops.client import Client, Json

ENDPOINTS = "/v1/webhook_endpoints"
DELIVERIES = "/v1/webhook_deliveries"


class WebhookClient(Client):
    """A client that also knows webhook endpoints and deliveries."""

    def create_endpoint(self, body: Json) -> Json:
        """Make an endpoint; the answer has its secret."""
        return self._json("POST", ENDPOINTS, json=body)

    def endpoints(self, user: str | None) -> Json:
        """All endpoints of a user, or of everybody."""
        found: list[Any] = []
        after: str | None = None
        while True:
            asked = {"user": user, "after": after, "limit": 100}
            page = self._json("GET", ENDPOINTS, params={name: value for name, value in asked.items() if value})
            found += page["data"]
            after = page["last_id"]
            if not page["has_more"]:
                return {**page, "data": found}

    def endpoint(self, endpoint_id: str) -> Json:
        """One endpoint."""
        return self._json("GET", _path(ENDPOINTS, endpoint_id))

    def change_endpoint(self, endpoint_id: str, body: Json) -> Json:
        """Change one; the endpoint as it is then."""
        return self._json("POST", _path(ENDPOINTS, endpoint_id), json=body)

    def delete_endpoint(self, endpoint_id: str) -> Json:
        """Remove one."""
        return self._json("DELETE", _path(ENDPOINTS, endpoint_id))

    def rotate_secret(self, endpoint_id: str, keep_old_s: float) -> Json:
        """A new secret, which is in the answer."""
        return self._json("POST", f"{_path(ENDPOINTS, endpoint_id)}/rotate_secret", json={"keep_old_s": keep_old_s})

    def test_endpoint(self, endpoint_id: str, kind: str) -> Json:
        """Send a sample; what the receiver answered."""
        return self._json("POST", f"{_path(ENDPOINTS, endpoint_id)}/test", json={"event_type": kind})

    def deliveries(self, **filters: str | int | None) -> Json:
        """One page of deliveries."""
        return self._json("GET", DELIVERIES, params={name: value for name, value in filters.items() if value})

    def delivery(self, delivery_id: str) -> Json:
        """One delivery with its attempts."""
        return self._json("GET", _path(DELIVERIES, delivery_id))

    def redeliver(self, delivery_id: str) -> Json:
        """Send one again now."""
        return self._json("POST", f"{_path(DELIVERIES, delivery_id)}/redeliver")


def _path(kind: str, name: str) -> str:
    return f"{kind}/{quote(name, safe='')}"
