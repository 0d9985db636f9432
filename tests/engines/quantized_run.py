"""Runs models in vLLM one after another, in this process: `python -m tests.engines.quantized_run FOLDER...`.

For each it prints, as JSON, the log-probability that vLLM gives to each token of a text, and the one that transformers
gives to it with the dequantized weights. A process of its own, since an engine without processes leaves much behind.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

TEXT = "A lease is renewed while its job runs; the one who holds it may write the result, and nobody else. " * 2


def main(folders: list[str]) -> None:
    """Print one line a folder."""
    # One thread: two of them that wait for each other take fifty times as long when other processes want the cores.
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", OMP_NUM_THREADS="1")
    for folder in folders:
        print(json.dumps({"vllm": of_vllm(folder), "plain": of_transformers(folder)}), flush=True)


def of_vllm(folder: str) -> list[float]:
    """Log-probabilities of the text's tokens after the first."""
    from common.catalogue import Model
    from workers.engines.vllm_check import check
    from workers.engines.vllm_engine import engine_arguments

    model = Model("m", "generation", "vllm", folder, 256, 4, options={"enforce_eager": True, "max_num_seqs": 4})
    check(model)
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    arguments = engine_arguments(model)
    del arguments["enable_log_requests"], arguments["shutdown_timeout"]
    llm = LLM(**arguments)
    (output,) = llm.generate([TEXT], SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0), use_tqdm=False)
    found = [
        next(one.logprob for token, one in each.items() if token == wanted)
        for wanted, each in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    ]
    del llm
    cleanup_dist_env_and_memory()
    return found


def of_transformers(folder: str) -> list[float]:
    """The same of the dequantized weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ops.bench.quantize import dequantized

    plain: Any = AutoModelForCausalLM.from_pretrained(dequantized(Path(folder)), dtype=torch.bfloat16)
    ids = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        scores = plain(ids).logits[0].float().log_softmax(-1)
    return [float(scores[i, token]) for i, token in enumerate(ids[0, 1:].tolist())]


if __name__ == "__main__":
    main(sys.argv[1:])
