"""What may be sent about webhooks and what is answered: OpenAI's endpoints as its SDK has them, with fields of ours."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from common.webhooks import EVENT_TYPES, Hook, check_secret
from producer.strict import Strict

WEEK_S = 7 * 86_400
USER = r"^[A-Za-z0-9_.@:-]{1,64}$"
KINDS = ", ".join(EVENT_TYPES)
JOB_EVENTS = tuple(kind for kind in EVENT_TYPES if not kind.startswith("batch."))
RESPONSE_EVENTS = tuple(kind for kind in EVENT_TYPES if kind.startswith("response."))
BATCH_EVENTS = tuple(kind for kind in EVENT_TYPES if kind.startswith("batch."))
ENDS = ", ".join(JOB_EVENTS)


def _url(text: str) -> str:
    if not 1 <= len(text) <= 2048:
        raise ValueError("allowed: 1 to 2,048 characters")
    return text


def _secret(text: str | None) -> str | None:
    if text is not None:
        check_secret(text)
    return text


def _events(kinds: list[str] | None) -> list[str] | None:
    for kind in kinds or []:
        if kind not in (*EVENT_TYPES, "*"):
            raise ValueError(f"there is no event {ascii(kind)[:60]}; allowed: {KINDS}, or *")
    return kinds


def _of(kinds: tuple[str, ...]) -> AfterValidator:
    def known(given: list[str]) -> list[str]:
        for kind in given:
            if kind not in kinds:
                raise ValueError(f"there is no end {ascii(kind)[:60]}; allowed: {', '.join(kinds)}")
        return given

    return AfterValidator(known)


Url = Annotated[str, AfterValidator(_url)]
Secret = Annotated[str | None, AfterValidator(_secret)]
Events = Annotated[list[str], Field(min_length=1, max_length=len(EVENT_TYPES) + 1), AfterValidator(_events)]


class _Webhook(Strict):
    """What every webhook has that comes with what it tells of."""

    url: Url = Field(description="An https:// address of a public host.")
    secret: Secret = Field(
        None, description="What deliveries are signed with: `whsec_…` or `whsk_…`. Left out, they are not signed."
    )
    payload: Literal["thin", "full"] | None = Field(
        None, description="thin: the id and how it ended. full: the job's record and result, up to 256 KiB."
    )
    events: list[str] | None = None

    def hook(self) -> Hook:
        """It as it is stored."""
        return Hook(self.url, self.secret or "", tuple(self.events) if self.events else None, self.payload or "thin")


class Webhook(_Webhook):
    """Where the end of one job is told."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"url": "https://example.org/jarvis", "events": ["job.completed"]}]}
    )

    events: Annotated[list[str], _of(JOB_EVENTS)] | None = Field(
        None, min_length=1, max_length=len(JOB_EVENTS), description=f"Which are told, all if left out: {ENDS}."
    )


class BatchWebhook(_Webhook):
    """Where the end of one batch is told."""

    payload: Literal["thin"] | None = None
    events: Annotated[list[str], _of(BATCH_EVENTS)] | None = Field(None, min_length=1, max_length=len(BATCH_EVENTS))


class ResponseWebhook(_Webhook):
    """Where the end of one response is told."""

    payload: Literal["thin"] | None = None
    events: Annotated[list[str], _of(RESPONSE_EVENTS)] | None = Field(
        None, min_length=1, max_length=len(RESPONSE_EVENTS)
    )


class NewEndpoint(Strict):
    """A standing endpoint to make."""

    url: Url
    event_types: Events
    name: str = Field("", max_length=256)
    user: str | None = Field(None, pattern=USER, description="Whose jobs it is told of.")
    payload: Literal["thin", "full"] = "thin"
    signature: Literal["hmac", "ed25519"] = "hmac"
    secret: Secret = Field(None, description="A secret of your own; left out, one is made and answered once.")


class ChangedEndpoint(Strict):
    """What is to change about an endpoint."""

    url: Url | None = None
    event_types: Events | None = None
    name: str | None = Field(None, max_length=256)
    payload: Literal["thin", "full"] | None = None
    enabled: bool | None = Field(None, description="false: it is told nothing; true: after a 410, say.")


class Rotation(Strict):
    """How an endpoint's secret changes."""

    keep_old_secret_active_for_24_hours: bool | None = None
    keep_old_s: float | None = Field(None, ge=0, le=WEEK_S, description="The old secret signs too for so long.")
    secret: Secret = Field(None, description="A secret of your own; left out, one is made.")
    signature: Literal["hmac", "ed25519"] | None = Field(None, description="Left out: as before.")

    @property
    def keep_s(self) -> float:
        """How long the old secret stays valid."""
        return self.keep_old_s or (86_400.0 if self.keep_old_secret_active_for_24_hours else 0.0)


class Trial(Strict):
    """A sample to send."""

    event_type: str

    @field_validator("event_type")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in EVENT_TYPES:
            raise ValueError(f"allowed: {KINDS}")
        return kind


class EndpointsQuery(Strict):
    """Which endpoints to list, newest first."""

    model_config = ConfigDict(strict=False)

    user: str | None = Field(None, pattern=USER)
    after: str | None = Field(None, max_length=64)
    limit: int = Field(20, ge=1, le=100)


class DeliveriesQuery(Strict):
    """Which deliveries to list, newest first."""

    model_config = ConfigDict(strict=False)

    status: Literal["pending", "delivered", "failed"] | None = Field(None, description="Only those that stand so.")
    user: str | None = Field(None, pattern=USER, description="Only this user's.")
    endpoint: str | None = Field(None, max_length=64, description="Only to this standing endpoint.")
    job: str | None = Field(None, max_length=64, description="Only of this job.")
    after: str | None = Field(None, pattern=r"^\d{1,15}-[0-9a-z-]{1,60}$", description="`next` of the page before.")
    limit: int = Field(50, ge=1, le=200, description="Most deliveries to answer.")


class AttemptOut(BaseModel):
    """One attempt."""

    at: float
    took_ms: int
    status: int | None = Field(description="What the receiver answered with.")
    error: str | None = Field(description="Why there was no answer.")
    address: str | None = Field(description="The address that was connected to.")
    shown: str | None = Field(description="How the answer began.")


class DeliveryOut(BaseModel):
    """One event for one receiver."""

    id: str
    object: Literal["webhook_delivery"]
    event: str = Field(description="The event's id, the same in every attempt: `webhook-id`.")
    type: str = Field(examples=["job.completed"])
    status: Literal["pending", "delivered", "failed"]
    job: str | None
    subject: str = Field(description="What ended: the job, or what it stood for.")
    user: str
    endpoint: str | None = Field(description="The standing endpoint; null for a job's own webhook.")
    url: str | None = Field(description="Where a job's own webhook goes, without its query.")
    attempts: int
    created_at: float
    next_attempt_at: float | None
    ended_at: float | None


class DeliveryWithAttemptsOut(DeliveryOut):
    """A delivery with its last attempts."""

    log: list[AttemptOut]


class DeliveriesOut(BaseModel):
    """A page of deliveries, newest first."""

    object: Literal["list"]
    data: list[DeliveryOut]
    has_more: bool
    next: str | None = Field(description="Cursor for `after`.")
