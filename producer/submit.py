"""From a request to an accepted job: checked whole, then one call of the queue, shared with those that came with it.

What fails a check never reaches Redis.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from typing import Any

import msgspec
from pydantic import ValidationError

from common.access import Principal
from common.catalogue import Catalogue, Model
from common.destinations import ALLOWED, Destinations
from common.errors import DestinationRefused, InvalidField, JarvisError, LimitReached, StoreUnavailable
from common.jobs import Awaited, Conversation, JobSpec, Submitted
from common.queue import Key, Queue
from common.settings import Settings
from producer import embed_params, rates
from producer.abilities import Abilities
from producer.explain import invalid_body
from producer.gather import Gathering
from producer.prompt import Prompts
from producer.schemas import Request, job_request
from producer.units import Metering
from producer.upload import Recording


class Submitter:
    """Accepts jobs for the models of one catalogue."""

    def __init__(self, queue: Queue, catalogue: Catalogue, settings: Settings) -> None:
        self.queue = queue
        self.catalogue = catalogue
        self.settings = settings
        self.destinations = Destinations(settings.webhook_allow)
        self.prompts = Prompts()
        self.metering = Metering(catalogue, settings, self.prompts, queue.blobs)
        self.abilities = Abilities()
        self._gathered: defaultdict[str, Gathering] = defaultdict(lambda: Gathering(queue))

    async def submit(
        self,
        body: dict[str, Any],
        who: Principal,
        idempotency_key: str | None = None,
        alone: bool = False,
        recording: Recording | None = None,
        awaited: Awaited = "",
    ) -> tuple[JobSpec, Submitted]:
        """Accept one job, or say why not: any error of the tree that has a row in `PROBLEMS`.

        One that may go to the blob store goes alone, so that no other one waits for that.
        """
        spec = await self.spec_of(body, who, recording)
        key = key_of(spec, idempotency_key)
        spec = await self.metering.measured(self.outliving_its_delay(spec))
        spec = await self.with_recording_stored(spec)
        try:
            submitted = await self._accepted(spec, key, alone, awaited)
        except JarvisError as error:
            await self.forget_recording(spec, error)
            raise
        await self.forget_recording(spec, submitted)
        return spec, submitted

    async def accept(self, spec: JobSpec, idempotency_key: str | None, alone: bool, awaited: Awaited = "") -> Submitted:
        """Accept a job that was checked and may start now."""
        key = key_of(spec, idempotency_key)
        return await self._accepted(await self.metering.measured(spec), key, alone, awaited)

    async def _accepted(self, spec: JobSpec, key: Key | None, alone: bool, awaited: Awaited) -> Submitted:
        if awaited:  # after the key: sent again by one who waits otherwise, it is the same request
            spec = msgspec.structs.replace(spec, awaited=awaited)
        shard = self.queue.keys.shard_of_queue(spec.queue)
        try:
            submitted = await (self.queue if alone else self._gathered[shard]).submit(spec, key)
        except LimitReached as error:
            self.learn(spec, error)
            raise
        self.learn(spec, submitted)
        return submitted

    def learn(self, spec: JobSpec, answer: Submitted | JarvisError) -> None:
        """Note what the queue's answer says of the limits of the job's key."""
        if isinstance(answer, LimitReached):
            self.metering.learn(spec.api_key, answer.limits)
            rates.note_refusal(answer)
        elif isinstance(answer, Submitted):
            self.metering.learn(spec.api_key, answer.limits)
            rates.note(answer.limits)

    async def with_recording_stored(self, spec: JobSpec) -> JobSpec:
        """The job as it is queued: with a reference in place of its recording, if it has one."""
        recording = spec.input.get("audio")
        if not isinstance(recording, Recording):
            return spec
        reference = await self.queue.blobs.store_file(recording.file, self.queue.life_s(spec.ttl_s))
        return msgspec.structs.replace(spec, input={**spec.input, "audio": reference})

    async def forget_recording(self, spec: JobSpec, answer: Submitted | JarvisError) -> None:
        """Remove the recording of a job that was not accepted, or that was accepted before."""
        mine = answer.created if isinstance(answer, Submitted) else isinstance(answer, StoreUnavailable)
        # An answer that was lost may have been a yes: then the recording goes when its time is over.
        if not mine and spec.kind == "transcription":
            await self.queue.blobs.remove(str(spec.input["audio"]))

    async def spec_of(self, body: dict[str, Any], who: Principal, recording: Recording | None = None) -> JobSpec:
        """The job that a request of this caller describes; raises for the first thing that is wrong with it."""
        request = checked(body)
        user = who.user(request.user if "user" in request.model_fields_set else None)
        if request.webhook:
            check_webhook_url(self.destinations, "webhook.url", request.webhook.url)
        model = self.catalogue.get(request.kind, request.model)
        asked, params = _given(body["input"]), _given(body.get("params"))
        if request.kind == "generation":
            # Whichever model of the chain runs the job must be able to do all that it asks for.
            for one in self.catalogue.chain(model):
                _check_params(model, one, params)
                self.abilities.check(one, asked, params)
                await self.prompts.check(one, asked, params.get("max_tokens"))
        elif request.kind == "embedding":
            await embed_params.check(model, asked["texts"], params, self.prompts)
        else:
            asked["audio"] = recording or Recording.of_text(asked.get("audio"))
        if recording and request.kind != "transcription":
            raise InvalidField("file", "a file", f"none: a job of kind {request.kind} takes no recording")
        return JobSpec(
            kind=request.kind,
            model=request.model,
            base="" if request.model == model.alias else model.alias,
            input=asked,
            params=params,
            user=user,
            api_key=who.key,
            priority=request.priority,
            metadata=request.metadata or {},
            delay_s=request.delay_s,
            run_at=request.run_at,
            ttl_s=request.ttl_s,
            timeout_s=request.timeout_s,
            max_attempts=request.max_attempts,
            hook=request.webhook.hook() if request.webhook else None,
            conversation=_conversation(request),
        )

    def outliving_its_delay(self, spec: JobSpec) -> JobSpec:
        """The job with a life that is longer than its delay; raises InvalidField when it asks for a shorter one."""
        delay_s = spec.delay_s or (0 if spec.run_at is None else spec.run_at - time.time())
        if delay_s <= 0:
            return spec
        if spec.ttl_s is None:
            # The usual life of a job counts from when it may start, else a long delay would outlive it.
            return msgspec.structs.replace(spec, ttl_s=delay_s + self.settings.default_ttl_s)
        if spec.ttl_s <= delay_s:
            raise InvalidField("ttl_s", spec.ttl_s, f"more than the {delay_s:.0f} s until the job may start")
        return spec


def _conversation(request: Request) -> Conversation | None:
    asked = request.conversation
    return Conversation(asked.key, asked.mode) if asked else None


def _check_params(asked: Model, model: Model, params: dict[str, Any]) -> None:
    for name in model.unknown_params(params):
        whose = "its upstream" if model is asked else f"its fallback {model.alias}"
        raise InvalidField(f"params.{name}", params[name], f"nothing for the model {asked.alias}: {whose} has none")


def check_webhook_url(destinations: Destinations, field: str, url: str) -> None:
    """Refuse an address that no delivery could ever reach; raises InvalidField. Names are looked up at delivery."""
    try:
        destinations.check_url(url)
    except DestinationRefused as error:
        raise InvalidField(field, url, f"{ALLOWED} ({error})") from None


def checked(body: dict[str, Any]) -> Request:
    """The request with every field checked; raises Invalid naming those that are wrong."""
    try:
        return job_request.validate_python(body)
    except ValidationError as error:
        raise invalid_body(error) from None


def key_of(spec: JobSpec, idempotency_key: str | None) -> Key | None:
    """The key under which the queue remembers a job."""
    return Key(idempotency_key, fingerprint(spec)) if idempotency_key else None


def fingerprint(spec: JobSpec) -> str:
    """What tells apart two requests with the same Idempotency-Key; spelling out a default changes nothing."""
    return hashlib.sha256(msgspec.json.encode(spec, enc_hook=_digest, order="deterministic")).hexdigest()


def _digest(value: Any) -> str:
    assert isinstance(value, Recording), "all else in a spec is JSON"
    return value.sha256


def _given(values: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (values or {}).items() if value is not None}
