"""A larger model than the demo's for measuring: its tokenizer, its kind, random weights. What it says means nothing."""

from __future__ import annotations

import json
from pathlib import Path

HEAD = 64
LAYERS = 12


def grow(folder: Path, millions: int) -> None:
    """Replace the Llama in this folder by a random one of about so many million parameters, in bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    before = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # A layer has 4 h^2 in its attention and 3 h (8/3 h) in its MLP.
    hidden = HEAD * max(1, round((millions * 1e6 / (12 * LAYERS)) ** 0.5 / HEAD))
    shape = {
        "hidden_size": hidden,
        "intermediate_size": 32 * round(hidden * 8 / 3 / 32),
        "num_hidden_layers": LAYERS,
        "num_attention_heads": hidden // HEAD,
        "num_key_value_heads": hidden // HEAD,
        "head_dim": HEAD,
    }
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**{**before, **shape})).to(torch.bfloat16).save_pretrained(folder)
