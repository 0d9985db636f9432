"""Every error of Jarvis, in one tree.

    JarvisError
    ├── InvalidField            422  a field of the request is wrong: which, what it was, what is allowed
    │   ├── BodyTooLarge        413
    │   └── NoEarlierResponse   400  what a response is to go on from is not there, or not yet
    ├── MalformedBody           400  the body is not JSON that we accept
    ├── NotAuthenticated        401  there is no API key, or none that counts
    ├── NotPermitted            403  the API key is not for this
    ├── UnknownModel            404  no such model in the catalogue
    ├── NotFound                404  no such job, file or batch
    │   ├── NoEndpoint          404  no such webhook endpoint
    │   ├── NoDelivery          404  no such delivery of a webhook
    │   ├── NoKey               404  no such API key
    │   └── ResponseNotFound    404  no such response
    ├── NotAllowedNow           409  the job's state does not allow this
    │   └── ConversationBusy    409  another job of the conversation has not ended
    ├── IdempotencyMismatch     422  the key was used with another request
    ├── QueueFull               429  the queue's bound is reached
    ├── LimitReached            429  the API key has used up a limit
    ├── TooMany                 429  as many files or unfinished batches as there may be
    ├── StoreUnavailable        503  Redis does not answer or refuses to write
    ├── DestinationRefused           a webhook's address is one that we do not call
    ├── EndpointsFull           429  the user has as many webhook endpoints as it may
    ├── SettingsInvalid              a setting or catalogue entry is wrong (at start)
    │   └── CatalogueInvalid         everything that is wrong in the catalogue
    ├── EngineDead                   the engine under a running job is gone
    ├── NotNow                       the engine takes no job now: back to the queue, at no attempt's cost
    └── JobFailed                    a job function says how its job failed

A class's docstring is its default message; facts are attributes. `PROBLEMS` maps each class that
can leave the HTTP edge to its status, problem type and whether a retry can help.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: OpenAI's clients wait no longer than this for a retry, whatever they are told.
PATIENCE_S = 120


class JarvisError(Exception):
    """Something went wrong in Jarvis."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class InvalidField(JarvisError):
    """A field of the request has a value that is not allowed."""

    def __init__(self, field: str, value: Any, allowed: str) -> None:
        self.field = field
        self.value = shown(value)
        self.allowed = allowed
        super().__init__(f"{field} is {self.value}; allowed: {allowed}")


class BodyTooLarge(InvalidField):
    """The request body is larger than this server accepts."""

    def __init__(self, limit_bytes: int, field: str = "body") -> None:
        super().__init__(field, f"more than {limit_bytes} bytes", f"at most {limit_bytes} bytes")


class NoEarlierResponse(InvalidField):
    """There is no response to go on from."""

    def __init__(self, response_id: str, why: str) -> None:
        super().__init__("previous_response_id", response_id, "a stored response that has been answered")
        self.args = (f"Previous response with id {shown(response_id)} {why}.",)


class MalformedBody(JarvisError):
    """The request body is not valid JSON."""

    def __init__(self, reason: str) -> None:
        self.field = "body"
        self.reason = reason
        super().__init__(f"body is not acceptable JSON: {reason}")


class NotAuthenticated(JarvisError):
    """The API key is missing or not valid: send `Authorization: Bearer jv_…`."""


class NotPermitted(JarvisError):
    """This API key is not for this."""

    def __init__(self, message: str, field: str | None = None) -> None:
        self.field = field
        super().__init__(message)


class UnknownModel(JarvisError):
    """No model of this name is in the catalogue."""

    def __init__(self, kind: str, model: str, known: list[str]) -> None:
        self.field = "model"
        self.value = shown(model)
        self.known = known
        super().__init__(f"model {self.value} is not a {kind} model here; known: {', '.join(known) or 'none'}")


class NotFound(JarvisError):
    """No job has this id (or its record's retention has ended)."""

    def __init__(self, job_id: str, what: str = "job") -> None:
        self.job_id = job_id
        super().__init__(f"no {what} {shown(job_id)}; it never existed or its retention has ended")


class NoEndpoint(NotFound):
    """No webhook endpoint has this id."""

    def __init__(self, endpoint_id: str) -> None:
        self.endpoint_id = endpoint_id
        JarvisError.__init__(self, f"no webhook endpoint {shown(endpoint_id)}")


class NoDelivery(NotFound):
    """No delivery of a webhook has this id (or its retention has ended)."""

    def __init__(self, delivery_id: str) -> None:
        self.delivery_id = delivery_id
        JarvisError.__init__(self, f"no delivery {shown(delivery_id)}; it never existed or its retention has ended")


class NoKey(NotFound):
    """No API key has this id."""

    def __init__(self, key_id: str) -> None:
        self.key_id = key_id
        JarvisError.__init__(self, f"no API key {shown(key_id)}")


class ResponseNotFound(NotFound):
    """No response has this id (or it was deleted, was not to be stored, or its retention has ended)."""

    def __init__(self, response_id: str) -> None:
        super().__init__(response_id)
        self.args = (f"Response with id {shown(response_id)} not found.",)


class NotAllowedNow(JarvisError):
    """The job's state does not allow this."""

    def __init__(self, job_id: str, state: str, action: str, what: str = "job") -> None:
        self.job_id = job_id
        self.state = state
        super().__init__(f"{what} {job_id} is {state}: {action} is not allowed")


class ConversationBusy(NotAllowedNow):
    """Another job of this conversation has not ended, and the new one was not to wait for it."""

    field = "conversation"

    def __init__(self, key: str, job_id: str) -> None:
        self.job_id = job_id
        self.state = "unfinished"
        JarvisError.__init__(self, f"conversation {shown(key)} has an unfinished job, {job_id}; its mode is reject")


class IdempotencyMismatch(JarvisError):
    """This Idempotency-Key was used before with another request."""

    field = "Idempotency-Key"


class QueueFull(JarvisError):
    """The queue holds as many waiting jobs as it may."""

    def __init__(self, queue: str, retry_after_s: int) -> None:
        self.queue = queue
        self.retry_after_s = retry_after_s
        super().__init__(f"queue {queue} is full; try again in {retry_after_s} s")


class LimitReached(JarvisError):
    """The API key has used up a limit: `violated` has the names of those in the way, the first one in words.

    `retry_after_s` is when the same request fits again, None when it never can; `limits` is how all of them stand.
    """

    def __init__(
        self, violated: Sequence[str], need: float, most: float, retry_after_s: float | None, limits: Any = ()
    ) -> None:
        self.violated = tuple(violated)
        self.retry_after_s = retry_after_s
        self.limits = limits
        name = self.violated[0]
        what = name.partition("-")[0].replace("_", " ")
        if retry_after_s is None:
            words = f"this needs {need:g} {what}, and limit {name} gives at most {most:g} at once"
            if what == "tokens":
                words += "; what counts is the prompt and max_tokens, for each of n answers"
        elif what == "waiting":
            words = f"{most:g} jobs of this key wait, which is its limit; try again in {retry_after_s:g} s"
        else:
            words = f"limit {name} is used up: this needs {need:g} {what}; try again in {retry_after_s:g} s"
        super().__init__(words)

    @property
    def retryable(self) -> bool:
        """Whether a client that waits by itself should: OpenAI's do so for two minutes at most."""
        return self.retry_after_s is not None and self.retry_after_s <= PATIENCE_S


class TooMany(JarvisError):
    """As many are kept as there may be."""

    def __init__(self, what: str, most: int, retry_after_s: int = 60) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"there are {most} {what} already, which is the most that are kept; delete some or wait")


class StoreUnavailable(JarvisError):
    """Redis does not answer or refuses to write. Sent again with its Idempotency-Key, a request is never doubled."""

    def __init__(self, reason: str, retry_after_s: int = 1) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"the job store does not answer ({reason}); send it again, with an Idempotency-Key to be safe")


class DestinationRefused(JarvisError):
    """A webhook's address is one that we do not call."""


class EndpointsFull(JarvisError):
    """The user has as many webhook endpoints as it may."""

    retry_after_s = 60


class SettingsInvalid(JarvisError):
    """A setting or a catalogue entry is wrong."""


class CatalogueInvalid(SettingsInvalid):
    """The catalogue has mistakes: `problems` lists each with its file and line."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class EngineDead(JarvisError):
    """The engine that ran this job is gone."""


class NotNow(JarvisError):
    """The engine takes no job now, for a reason that is not the job's."""


class JobFailed(JarvisError):
    """A job function says how its job failed."""

    def __init__(self, code: str, message: str, retryable: bool = False, delay_s: float | None = None) -> None:
        self.code = code
        self.message = message
        self.retryable = retryable
        self.delay_s = delay_s
        super().__init__(f"{code}: {message}")


@dataclass(frozen=True, slots=True)
class Problem:
    """How an error leaves the HTTP edge."""

    status: int
    type: str
    title: str
    retryable: bool


_IANA = "https://iana.org/assignments/http-problem-types"

PROBLEMS: dict[type[JarvisError], Problem] = {
    BodyTooLarge: Problem(413, "about:blank", "Content Too Large", False),
    NoEarlierResponse: Problem(400, "about:blank", "Previous Response Not Found", False),
    InvalidField: Problem(422, "about:blank", "Unprocessable Content", False),
    MalformedBody: Problem(400, "about:blank", "Bad Request", False),
    NotAuthenticated: Problem(401, "about:blank", "Unauthorized", False),
    NotPermitted: Problem(403, "about:blank", "Forbidden", False),
    UnknownModel: Problem(404, "about:blank", "Unknown Model", False),
    NotFound: Problem(404, "about:blank", "Not Found", False),
    NotAllowedNow: Problem(409, "about:blank", "Conflict", False),
    IdempotencyMismatch: Problem(422, "about:blank", "Idempotency-Key Reused", False),
    QueueFull: Problem(429, f"{_IANA}#quota-exceeded", "Queue Full", True),
    LimitReached: Problem(429, f"{_IANA}#quota-exceeded", "Limit Reached", True),
    TooMany: Problem(429, f"{_IANA}#quota-exceeded", "Too Many", True),
    EndpointsFull: Problem(429, f"{_IANA}#quota-exceeded", "Too Many Endpoints", False),
    StoreUnavailable: Problem(503, f"{_IANA}#temporary-reduced-capacity", "Service Unavailable", True),
}


def problem_of(error: JarvisError) -> Problem:
    """The problem of an error's nearest class in the table; 500 for one that should not leave the edge."""
    for cls in type(error).__mro__:
        if cls in PROBLEMS:
            return PROBLEMS[cls]
    return Problem(500, "about:blank", "Internal Server Error", False)


def shown(value: Any, limit: int = 80) -> str:
    """A value as it may stand in a message: printable, short, never a whole prompt."""
    text = ascii(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
