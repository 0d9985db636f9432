"""Writes a tiny BLIP-2 with random weights: of vLLM's vision models it is one that needs no torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.engines.tiny_model import write_tiny_model

SIZE = 28  # of an image's side, in pixels
IMAGE_TOKENS = 4
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}{% endif %}{% endfor %}<|assistant|>"
)


def write_tiny_vision_model(folder: Path) -> Path:
    """A model in `folder` that sees images as four tokens before the prompt; the same weights every time."""
    import torch
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessorPil

    write_tiny_model(folder)
    tokenizer = _tokenizer(folder)
    images = BlipImageProcessorPil(size={"height": SIZE, "width": SIZE})
    processor: Any = Blip2Processor(image_processor=images, tokenizer=tokenizer, num_query_tokens=IMAGE_TOKENS)
    small = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
    text = {"model_type": "opt", "hidden_size": 128, "word_embed_proj_dim": 128, "ffn_dim": 256}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256, "pad_token_id": 0}
    config = Blip2Config(
        vision_config={**small, "image_size": SIZE, "patch_size": 14},
        qformer_config={**small, "vocab_size": len(tokenizer), "encoder_hidden_size": 64},
        text_config={**text, "vocab_size": len(tokenizer), "eos_token_id": 0, "bos_token_id": tokenizer.bos_token_id},
        num_query_tokens=IMAGE_TOKENS,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(1)
    model: Any = Blip2ForConditionalGeneration(config)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.2)
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"], "bos_token": "<bos>"})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
