"""Presets: tuned engine arguments under one name. What an entry says itself wins over its preset.

A value here is a choice that was made for a purpose, so it has its reason beside it. All are vLLM's arguments.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

PRESETS = MappingProxyType[str, dict[str, Any]](
    {
        # Most tokens a second over all jobs; one job may wait for a step that many others share.
        "throughput": {
            "max_num_seqs": 256,  # decoding reads all weights once a step, however many sequences share it
            "max_num_batched_tokens": 8192,  # prompts are computed in steps large enough to keep a GPU busy
            "enable_chunked_prefill": True,  # decoding goes on beside a long prompt
            "enable_prefix_caching": True,  # the prompt's part that many jobs share is computed once
            "gpu_memory_utilization": 0.92,  # what weights leave is KV cache; the rest is for the CUDA context
        },
        # Shortest time to the first and the next token.
        "latency": {
            "max_num_seqs": 32,  # a step stays short; what does not fit waits in the queue, by its priority
            "max_num_batched_tokens": 2048,  # a newcomer's prompt holds up the others' next token no longer than this
            "enable_chunked_prefill": True,
            "enable_prefix_caching": True,
            "gpu_memory_utilization": 0.92,
        },
        # A card of 6 to 12 GB, perhaps with a desktop on it.
        "small-gpu": {
            "max_num_seqs": 16,  # KV cache and sampling buffers of few sequences
            "max_num_batched_tokens": 2048,  # the memory of activations grows with it
            "enable_chunked_prefill": True,
            "enable_prefix_caching": True,
            "enforce_eager": True,  # captured CUDA graphs would take memory that KV cache needs
            "gpu_memory_utilization": 0.85,  # of the whole card: leaves about 1 GB of 8 to others
        },
        # No GPU: arithmetic is the bound, not memory.
        "cpu": {
            "max_num_seqs": 64,  # beyond it every sequence only makes each step longer
            "max_num_batched_tokens": 2048,  # a prompt's step takes long on a CPU; the others wait for it
            "enable_chunked_prefill": True,
            "enable_prefix_caching": True,
            "enforce_eager": True,  # compiling costs seconds at every start
            "kv_cache_memory_bytes": 1
            << 30,  # a CPU's "share of memory" is the whole machine's: named in bytes instead
        },
    }
)
