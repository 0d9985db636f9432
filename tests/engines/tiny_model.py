"""Writes a tiny Llama with random weights and a byte-level tokenizer: it loads like any model and means nothing."""

from __future__ import annotations

import json
from pathlib import Path

CHAT_TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"


def write_tiny_model(folder: Path, *, chat: bool = True, positions: int = 256) -> Path:
    """A model of about 0.3 M parameters in `folder`; the same weights every time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size = _write_tokenizer(folder, chat=chat)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=positions,
        bos_token_id=None,
        eos_token_id=0,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def write_tiny_adapter(folder: Path, seed: int, rank: int = 8) -> Path:
    """A random LoRA of the tiny model's attention, strong enough to change what it says."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    targets = ["q_proj", "v_proj"]
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 4 * rank, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    random = torch.Generator().manual_seed(seed)
    weights = {
        f"base_model.model.model.layers.{layer}.self_attn.{target}.lora_{side}.weight": torch.randn(
            shape, generator=random
        ).to(torch.bfloat16)
        for layer in range(2)
        for target in targets
        for side, shape in (("A", (rank, 128)), ("B", (128, rank)))
    }
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def _write_tokenizer(folder: Path, *, chat: bool) -> int:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    # Every token is one byte (plus the end), so that answers are full of characters split over tokens.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0, **{letter: number for number, letter in enumerate(alphabet, 1)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"}
    if chat:
        settings["chat_template"] = CHAT_TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(vocabulary)
