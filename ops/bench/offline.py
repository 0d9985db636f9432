"""One model in vLLM, in this process: `python -m ops.bench.offline` reads a question from stdin, prints the answer.

The question has `arguments` (of the engine), `prompts`, `max_tokens`, `rounds` and `text`; the answer the greedy
tokens, the seconds of each round, the log-probabilities of the text's tokens, the memory, and what became of guesses.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process: its memory is the model's
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
}


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Load the model and use it."""
    # One core stays free, as vLLM keeps it where its engine has processes; a first guess of numba's would take it back.
    threads = str(max(1, len(os.sched_getaffinity(0)) - 1))
    os.environ.update(ENVIRONMENT, OMP_NUM_THREADS=threads, NUMBA_NUM_THREADS=threads)
    from vllm import LLM, SamplingParams

    started = time.perf_counter()
    llm = LLM(disable_log_stats=False, **question["arguments"])  # guesses are counted with the stats
    loaded = time.perf_counter()
    params = SamplingParams(temperature=0, max_tokens=question["max_tokens"], ignore_eos=True)
    seconds, ids = [], []
    for _ in range(question["rounds"] + 1):  # the first only warms up
        begun = time.perf_counter()
        outputs = llm.generate(question["prompts"], params, use_tqdm=False)
        seconds.append(time.perf_counter() - begun)
        ids = [list(output.outputs[0].token_ids) for output in outputs]
    guessed = guesses(llm)
    return {
        "start_s": loaded - started,
        "seconds": seconds[1:],
        "ids": ids,
        "guesses": guessed,
        "logprobs": logprobs(llm, question["text"], question["arguments"]["max_model_len"]),
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def guesses(llm: Any) -> dict[str, int]:
    """How often tokens were guessed, how many, and how many of them were right; all 0 without speculation."""
    found = {metric.name: getattr(metric, "value", 0) for metric in llm.get_metrics()}
    names = {"drafts": "num_drafts", "tokens": "num_draft_tokens", "accepted": "num_accepted_tokens"}
    return {ours: int(found.get(f"vllm:spec_decode_{theirs}", 0)) for ours, theirs in names.items()}


def logprobs(llm: Any, text: str, length: int) -> list[float]:
    """What the model gives to each token of a text but the first of every stretch as long as its context."""
    from vllm import SamplingParams
    from vllm.inputs import tokens_input

    ids = llm.get_tokenizer().encode(text)
    stretches = [ids[low : low + length - 1] for low in range(0, len(ids), length - 1)]
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    outputs = llm.generate([tokens_input(some) for some in stretches if len(some) > 1], params, use_tqdm=False)
    return [
        each[token].logprob
        for output in outputs
        for token, each in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    ]


if __name__ == "__main__":
    print(json.dumps(answer(json.loads(sys.stdin.read()))))
