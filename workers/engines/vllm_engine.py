"""vLLM's asynchronous engine inside the worker, so that its continuous batching sees every job the worker holds.

The engine core is a spawned process of its own: it dies with the worker (`owner.py`), and when it dies alone every
request in flight gets EngineDead. vLLM is imported only when an engine starts.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Any, cast

import msgspec

from common.catalogue import Model
from common.errors import EngineDead, JobFailed, SettingsInvalid
from workers.engines import vllm_one_process, vllm_requests
from workers.engines.admission import Admission
from workers.engines.memory import advice
from workers.engines.protocol import FinishReason, GenerationDelta, GenerationRequest, Take
from workers.engines.vllm_adapters import lora_arguments, lora_request
from workers.engines.vllm_prompts import Prompts
from workers.engines.vllm_push import Handover
from workers.engines.vllm_requests import EngineOwner, Parsers, Reading
from workers.engines.vllm_stats import VllmStats
from workers.engines.vllm_together import Together, marked

STOP_TIMEOUT_S = 3.0  # then SIGKILL: an engine that is let go has nothing left to lose
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",  # at WARNING every start prints a dozen lines about CPUs without Triton
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",  # read by the engine's processes only
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
# The seeds' tuned values; a catalogue entry's options override any of them.
ARGUMENTS: dict[str, Any] = {
    "max_num_seqs": 256,
    "max_num_batched_tokens": 8192,
    "enable_prefix_caching": True,
    "scheduling_policy": "priority",  # a lane is a priority: see `PRIORITIES` in workers/generation.py
    "disable_log_stats": True,
    "enable_log_requests": False,
    "use_tqdm_on_load": False,
    # Only for a SIGTERM that reaches the engine core itself (systemd sends it to every process of the unit):
    # requests in flight are finished, not aborted, while the worker drains.
    "shutdown_timeout": 30,
    "structured_outputs_config": vllm_requests.STRUCTURED,
    "worker_extension_cls": "workers.engines.vllm_amx.AmxAllowed",
}


class VllmEngine:
    """One model in vLLM."""

    def __init__(self, model: Model, stat_loggers: list[Any] | None = None) -> None:
        self.model = model
        self._stat_loggers = stat_loggers or []
        self.stats = VllmStats(Admission(model.slots, model.least_slots))
        self._llm: Any = None
        self._owner = EngineOwner()
        self._parsers: Parsers
        self._prompts: Prompts
        self._together = Together()
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Load the model in a new engine core; the event loop stays free meanwhile."""
        async with self._changing:
            await self._start()

    async def stop(self) -> None:
        """End the engine core and its workers."""
        async with self._changing:
            await self._stop()

    async def restart(self) -> None:
        """Replace a dead engine core."""
        async with self._changing:
            if not self.alive:
                await self._stop()
                await self._start()

    @property
    def alive(self) -> bool:
        """Whether the engine core runs and answers."""
        return self._llm is not None and not self._llm.errored

    def admits(self) -> int:
        """Requests that fit its KV cache, as far as it has shown."""
        return self.stats.admission.allowed

    def figures(self) -> dict[str, float]:
        """What vLLM counts of itself."""
        return self.stats.figures()

    async def generate(self, request_id: str, request: GenerationRequest) -> AsyncGenerator[GenerationDelta]:
        """Deltas, one an engine step. Closing aborts the request: its slot and KV cache are free at the next step."""
        llm = self._llm
        if not self.alive:
            raise EngineDead("the vLLM engine is not running")
        prompt = await self._prompt(llm, request)
        request = _with_ids(llm, request)
        steps = self._resume if request.resume_ids else self._steps
        outputs = None
        try:
            reading = self._parsers.reading(request_id, request, prompt["prompt_token_ids"])
            outputs = steps(llm, request_id, prompt, request, reading)
            if reading is not None:
                outputs = reading.read(outputs)
            async for delta in outputs:
                yield delta
        except Exception as error:
            raise self._explained(_translated(error)) from error
        finally:
            if outputs is not None:
                self.stats.ended()
                await outputs.aclose()

    async def push(self, request_id: str, request: GenerationRequest, take: Take) -> None:
        """As `generate`, with each delta handed to `take` in the step that made it, as long as that returns above 0."""
        llm = self._llm
        if not self.alive:
            raise EngineDead("the vLLM engine is not running")
        prompt = await self._prompt(llm, request)
        request = _with_ids(llm, request)
        if request.resume_ids or self._parsers.reading(request_id, request, prompt["prompt_token_ids"]) is not None:
            async with aclosing(self.generate(request_id, request)) as deltas:
                async for delta in deltas:
                    if take(delta) < 1:
                        return
            return
        prompt_tokens = len(prompt["prompt_token_ids"])
        try:
            params = marked(_sampling(llm, request, prompt_tokens, None), await self._together.followed())
            collector = await llm.add_request(request_id, prompt, params, **self._how(request, None))
            await Handover(llm, collector, lambda step: _delta(llm, request, step, prompt_tokens), take).run()
        except Exception as error:
            raise self._explained(_translated(error)) from error
        finally:
            self.stats.ended()

    async def _start(self) -> None:
        prepare(self.model)
        try:
            self._llm = await _in_thread(self._build)
            self._parsers = Parsers(self._llm, self.model)
            self._prompts = Prompts(self._llm)
        except Exception as error:
            await self._stop()
            raise self._explained(error) from error

    def _build(self) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from workers.engines.vllm_check import check

        check(self.model)
        arguments = AsyncEngineArgs(additional_config=self._owner, **engine_arguments(self.model))
        config = arguments.create_engine_config()
        loggers = [self.stats.logger_class(), *self._stat_loggers]
        quiet = {
            "enable_log_requests": arguments.enable_log_requests,
            "disable_log_stats": arguments.disable_log_stats,
        }
        with vllm_one_process.threads(config):
            llm = AsyncLLM.from_vllm_config(config, stat_loggers=loggers, **quiet)
        self.stats.slim(llm)
        return llm

    def _explained(self, error: Exception) -> Exception:
        """The error with what to turn in the catalogue, if memory ran out in this process or the engine's own."""
        if isinstance(error, (JobFailed, SettingsInvalid)):
            return error
        told = "; ".join([str(error), *self._owner.told()])
        if (what := advice(told, self.model)) is None:
            return error
        if isinstance(error, EngineDead):
            return EngineDead(f"{error}: {what}")
        return SettingsInvalid(f"{self.model.place}: {self.model.alias}: {what}. The engine said: {told}")

    async def _stop(self) -> None:
        llm, self._llm = self._llm, None
        if llm is None:
            return
        await _in_thread(partial(llm.shutdown, timeout=STOP_TIMEOUT_S))
        if llm.output_handler is not None:
            await asyncio.wait([llm.output_handler], timeout=1)
        del llm
        gc.unfreeze()  # the worker froze what there was when it was ready
        gc.collect()  # else its __del__ runs when the interpreter has already taken vLLM's modules apart

    async def _prompt(self, llm: Any, request: GenerationRequest) -> Any:
        try:
            rendered = await self._prompts.rendered(request)
        except Exception as error:
            raise _translated(error) from error
        ids: list[int] = rendered["prompt_token_ids"]
        room = llm.model_config.max_model_len - len(ids)
        if room < 1:
            raise JobFailed(
                "prompt_too_long", f"the prompt has {len(ids)} tokens, the model's context {room + len(ids)}"
            )
        return rendered

    async def _steps(
        self, llm: Any, request_id: str, prompt: Any, request: GenerationRequest, reading: Reading | None
    ) -> AsyncGenerator[GenerationDelta]:
        prompt_tokens = len(prompt["prompt_token_ids"])
        params = marked(_sampling(llm, request, prompt_tokens, reading), await self._together.followed())
        async for output in llm.generate(prompt, params, request_id, **self._how(request, reading)):
            yield _delta(llm, request, output.outputs[0], prompt_tokens)

    def _how(self, request: GenerationRequest, reading: Reading | None) -> dict[str, Any]:
        lora = lora_request(self.model, request.adapter)
        told = vllm_requests.engine_arguments(request, reading)
        return {"lora_request": lora, "priority": request.priority, **told}

    async def _resume(
        self, llm: Any, request_id: str, prompt: Any, request: GenerationRequest, reading: Reading | None
    ) -> AsyncGenerator[GenerationDelta]:
        """Go on after `resume_ids`: they join the prompt, but are detokenized as the answer that they are.

        vLLM would decode the new tokens after a prompt that may end inside a character. So it is asked for tokens
        only, and its own incremental detokenizer, fed from the answer's first token, makes the same text as in an
        answer without interruption.
        """
        from vllm.v1.engine.detokenizer import IncrementalDetokenizer

        resumed, prompt_tokens = request.resume_ids, len(prompt["prompt_token_ids"])
        params = _sampling(llm, request, prompt_tokens, reading)
        whole = llm.input_processor.process_inputs(request_id, prompt, params, await llm.get_supported_tasks())
        detokenizer = IncrementalDetokenizer.from_new_request(llm.get_tokenizer(), whole)
        ended = not params.ignore_eos and resumed[-1] in whole.sampling_params.all_stop_token_ids
        detokenizer.update(resumed, ended)
        params.max_tokens -= len(resumed)
        params.min_tokens = max(0, params.min_tokens - len(resumed))
        reason: FinishReason | None = "stop" if ended else "length" if params.max_tokens < 1 else None
        yield GenerationDelta(detokenizer.get_next_output_text(reason is not None, True), [], reason, prompt_tokens)
        if reason is not None:
            return
        params.detokenize = False
        params.extra_args = {vllm_requests.RESUMED: len(resumed)}
        longer = {**prompt, "prompt_token_ids": prompt["prompt_token_ids"] + resumed}
        async for output in llm.generate(longer, params, request_id, **self._how(request, reading)):
            step = output.outputs[0]
            reason = _reason(step.finish_reason, request)
            detokenizer.update(list(step.token_ids), reason == "stop")
            text = detokenizer.get_next_output_text(reason is not None, True)
            yield _with_logprobs(llm, request, text, step, reason, prompt_tokens)


def prepare(model: Model) -> None:
    """Set what vLLM reads from the environment when it is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # vLLM reads the level itself, but some of its modules log while they are imported.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    if model.local:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if "kv_cache_memory_bytes" in model.engine_options:
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would count more than the catalogue does
    else:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; read on CPU only


def engine_arguments(model: Model) -> dict[str, Any]:
    """What vLLM is started with for a catalogue entry; raises SettingsInvalid for weights that do not fit."""
    from vllm.platforms import current_platform

    return {
        "model": model.weights_path(),
        "max_model_len": model.max_model_len,
        **ARGUMENTS,
        **vllm_one_process.arguments(model, current_platform.is_cpu()),
        **({"speculative_config": model.speculative_config()} if model.speculative else {}),
        **model.engine_options,
        **lora_arguments(model, current_platform.is_cpu()),
    }


def _with_ids(llm: Any, request: GenerationRequest) -> GenerationRequest:
    """What another engine began, without telling its tokens, goes on from its text as this model reads it."""
    if not request.resume_text or request.resume_ids:
        return request
    ids = llm.get_tokenizer().encode(request.resume_text, add_special_tokens=False)
    return msgspec.structs.replace(request, resume_ids=ids[: request.max_tokens])


def _sampling(llm: Any, request: GenerationRequest, prompt_tokens: int, reading: Reading | None) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    max_tokens = min(request.max_tokens, llm.model_config.max_model_len - prompt_tokens)
    sampling = dict(request.sampling)
    if "min_tokens" in sampling:
        sampling["min_tokens"] = min(sampling["min_tokens"], max_tokens)
    params = SamplingParams(
        max_tokens=max_tokens,
        output_kind=RequestOutputKind.DELTA,
        logprobs=request.logprobs,
        skip_clone=True,  # nobody else has them
        **sampling,
    )
    vllm_requests.adjust(params, request, reading)
    return params


def _delta(llm: Any, request: GenerationRequest, step: Any, prompt_tokens: int) -> GenerationDelta:
    reason = _reason(step.finish_reason, request)
    if request.logprobs is None:
        return GenerationDelta(step.text, step.token_ids, reason, prompt_tokens)
    return _with_logprobs(llm, request, step.text, step, reason, prompt_tokens)


def _with_logprobs(
    llm: Any, request: GenerationRequest, text: str, step: Any, reason: FinishReason | None, prompt_tokens: int
) -> GenerationDelta:
    logprobs = None
    if request.logprobs is not None:
        logprobs = vllm_requests.logprobs_of(llm, step.token_ids, step.logprobs, request.logprobs)
    return GenerationDelta(text, step.token_ids, reason, prompt_tokens, logprobs=logprobs)


def _reason(reason: str | None, request: GenerationRequest) -> FinishReason | None:
    if reason is None:
        return None
    if reason in ("stop", "length"):
        return cast(FinishReason, reason)
    if reason == "abort":  # not by us: we would have stopped reading
        raise EngineDead("the vLLM engine is shutting down")
    if reason == "error" and request.structured is not None:
        raise JobFailed("invalid_request", "the structure that was asked for could not be compiled")
    raise JobFailed("engine_error", f"vLLM ended the request with {reason!r}", retryable=True)


def _translated(error: Exception) -> Exception:
    from vllm.exceptions import VLLMClientError
    from vllm.renderers.chat_utils import ChatTemplateResolutionError
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    if isinstance(error, (EngineDead, JobFailed)):
        return error
    if isinstance(error, EngineDeadError):
        return EngineDead("the vLLM engine core died")
    if isinstance(error, ChatTemplateResolutionError):
        return JobFailed("no_chat_template", "this model has no chat template; send a prompt instead of messages")
    if isinstance(error, EngineGenerateError):
        return JobFailed("engine_error", f"vLLM failed: {error.__cause__ or error}", retryable=True)
    if isinstance(error, (VLLMClientError, ValueError, TypeError)):
        too_long = getattr(error, "parameter", None) in ("input_text", "input_tokens")
        return JobFailed("prompt_too_long" if too_long else "invalid_request", str(error))
    return error


async def _in_thread(work: Any) -> Any:
    # A thread of its own: loading takes longer than anything else that waits in the loop's default pool.
    with ThreadPoolExecutor(1, thread_name_prefix="vllm") as pool:
        return await asyncio.get_running_loop().run_in_executor(pool, work)
