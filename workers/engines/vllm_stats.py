"""What vLLM counts of itself at each step, summed over the life of the worker: restarts of its core do not reset it."""

from __future__ import annotations

import logging
import time
from typing import Any

from workers.engines.admission import Admission

log = logging.getLogger("jarvis.engines")

LOG_S = 60.0


class VllmStats:
    """Sums of one engine, and how many requests it can serve at once."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self._sums = dict.fromkeys(
            ("preemptions", "prefix_tokens", "prefix_hit_tokens", "draft_tokens", "accepted_tokens"), 0
        )
        self._now = {"running": 0, "waiting": 0, "kv_cache_usage": 0.0}
        self._finished = 0  # since the last step
        self._logged_at = time.monotonic()

    def slim(self, llm: Any) -> None:
        """Have an engine that has had no request yet count per step only: counting each token costs a sixth of the
        tokens/s of a small model (64 streams, 2 Xeon cores: 10,000 instead of 12,000). Nor does anybody ask this
        process for vLLM's own Prometheus metrics, which it writes at each step.
        """
        from vllm.v1.metrics.loggers import PrometheusStatLogger

        manager = llm.logger_manager
        manager.stat_loggers = [one for one in manager.stat_loggers if not isinstance(one, PrometheusStatLogger)]
        if llm.vllm_config.cache_config.enable_prefix_caching:  # without it nothing else tells of preemptions
            llm.log_stats = llm.output_processor.log_stats = False

    def ended(self) -> None:
        """A request has its last token, or was given up."""
        self._finished += 1

    def figures(self) -> dict[str, float]:
        """Requests in the batch and before it, share of the KV cache in use, and sums since the worker's start."""
        return self._now | self._sums

    def logger_class(self) -> Any:
        """The class that vLLM makes its listener from."""
        from vllm.v1.metrics.loggers import StatLoggerBase

        note = self._note

        class Listener(StatLoggerBase):  # type: ignore[misc]
            def __init__(self, *_: Any, **__: Any) -> None: ...

            def log_engine_initialized(self) -> None: ...

            def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
                if scheduler_stats is not None:
                    note(scheduler_stats, iteration_stats)

        return Listener

    def _note(self, step: Any, iteration: Any) -> None:
        running, waiting, usage = step.num_running_reqs, step.num_waiting_reqs, step.kv_cache_usage
        # vLLM tells of a preemption when the request that was put back runs again.
        if iteration is not None:
            self._sums["preemptions"] += iteration.num_preempted_reqs
        else:
            self._sums["preemptions"] += step.prefix_cache_stats.preempted_requests
        finished, self._finished = self._finished, 0
        now = time.monotonic()
        self._now = {"running": running, "waiting": waiting, "kv_cache_usage": usage}
        self._sums["prefix_tokens"] += step.prefix_cache_stats.queries
        self._sums["prefix_hit_tokens"] += step.prefix_cache_stats.hits
        if step.spec_decoding_stats is not None:
            self._sums["draft_tokens"] += step.spec_decoding_stats.num_draft_tokens
            self._sums["accepted_tokens"] += step.spec_decoding_stats.num_accepted_tokens
        self.admission.note(running, waiting, usage, finished)
        if now - self._logged_at >= LOG_S:
            self._logged_at = now
            log.info("vLLM: %s", self.words())

    def words(self) -> str:
        """The figures in a sentence, for the log."""
        now, sums = self._now, self._sums
        parts = [
            f"{now['running']} running, {now['waiting']} waiting",
            f"KV cache {now['kv_cache_usage']:.0%}",
            f"prefix cache {_share(sums['prefix_hit_tokens'], sums['prefix_tokens'])}",
            f"{sums['preemptions']} preemptions, {self.admission.allowed} of {self.admission.slots} slots",
        ]
        if sums["draft_tokens"]:
            parts.append(f"guesses accepted {_share(sums['accepted_tokens'], sums['draft_tokens'])}")
        return "; ".join(parts)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%} of {whole} tokens" if whole else "not asked"
