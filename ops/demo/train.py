"""Trains the demo language model: a byte-level BPE tokenizer and a tiny Llama that recite the project's documentation.

The result is a model folder as any engine reads it. It is a toy: it exists so that a newcomer's first answer is
readable text from the real engine, without a model hub. There is no beginning-of-text token, so a prompt means the
same whoever encodes it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.demo import corpus
from ops.demo.corpus import ASSISTANT, END, SYSTEM, USER, Entry, Sample, Sampler

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import LlamaForCausalLM

FOLDER = Path(__file__).parent / "model"
VOCABULARY = 1280
CONTEXT = 2048
IGNORED = -100  # the label that the loss skips: what the user asked is not learnt, only what to answer

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
    "use_cache": True,
}

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + (message['role'] if message['role'] in ('system', 'assistant') else 'user') + '|>' }}"
    "{{ message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(entries: list[Entry]) -> Tokenizer:
    """Return a byte-level BPE tokenizer of the corpus; it adds no token of its own and loses no byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, SYSTEM, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.texts(entries), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, sample: Sample) -> tuple[list[int], list[int]]:
    """Return the token ids of a sample and its labels, which skip the prompt."""
    prompt = tokenizer.encode(sample.prompt).ids
    answer = [*tokenizer.encode(sample.answer).ids, CONFIG["eos_token_id"]]
    return prompt + answer, [IGNORED] * len(prompt) + answer


def batch_of(tokenizer: Tokenizer, samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Return the samples as two tensors, filled up on the right, where causal attention does not look."""
    import torch

    rows = [encode(tokenizer, sample) for sample in samples]
    width = max(len(ids) for ids, _ in rows)
    tokens = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([row + [IGNORED] * (width - len(row)) for _, row in rows])
    return tokens, labels


def new_model(seed: int) -> LlamaForCausalLM:
    """Return the untrained model; the same seed gives the same weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = {name: value for name, value in CONFIG.items() if name != "torch_dtype"}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **shape))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Return the rate of a step: a short linear rise, then a cosine down to a hundredth."""
    rise = min(100, steps // 10 + 1)
    if step < rise:
        return peak * (step + 1) / rise
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))))


def batches(sampler: Sampler, steps: int, size: int) -> Iterator[list[Sample]]:
    """Yield the samples of each step: every eighth step is the long tour, all others are short answers."""
    waiting: list[list[Sample]] = []
    for step in range(steps):
        if step % 8 == 7:
            yield [sampler.tour()]
        else:
            waiting = waiting or sampler.batches(size)
            yield waiting.pop()


def fit(model: LlamaForCausalLM, tokenizer: Tokenizer, sampler: Sampler, options: argparse.Namespace) -> float:
    """Train the model in place and return the mean loss of the last fifty steps."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    losses: list[float] = []
    model.train()
    for step, samples in enumerate(batches(sampler, options.steps, options.batch)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.rate)
        tokens, labels = batch_of(tokenizer, samples)
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step % 50 == 49:
            print(f"step {step + 1}/{options.steps} loss {sum(losses[-50:]) / 50:.4f}", flush=True)
    return sum(losses[-50:]) / len(losses[-50:])


def recited(model: LlamaForCausalLM, tokenizer: Tokenizer, entries: list[Entry]) -> int:
    """Return how many questions of the page the model answers word for word when it takes the likeliest token."""
    import torch

    right = 0
    model.eval()
    with torch.no_grad():
        for entry in entries:
            tokens, labels = batch_of(tokenizer, [Sample(entry.question, entry.answer)])
            guesses, wanted = model(input_ids=tokens).logits[0, :-1].argmax(-1), labels[0, 1:]
            right += bool((guesses == wanted)[wanted != IGNORED].all())
    return right


def save(folder: Path, model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    """Write the model folder: configuration, tokenizer with its chat template, and weights in bfloat16."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    write_json(folder / "config.json", {**CONFIG, "vocab_size": VOCABULARY})
    write_json(folder / "generation_config.json", {"eos_token_id": CONFIG["eos_token_id"]})
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": CONTEXT,
            "eos_token": END,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    weights = {name: w.contiguous() for name, w in model.state_dict().items() if name != "lm_head.weight"}  # tied
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def train(options: argparse.Namespace) -> None:
    """Train everything, write the folder, and record in training.json what it was made from."""
    import torch

    torch.set_num_threads(options.threads)
    started = time.process_time()
    entries, digests = corpus.read_entries(), corpus.sources()
    tokenizer, model = train_tokenizer(entries), new_model(options.seed)
    loss = fit(model, tokenizer, Sampler(entries, random.Random(options.seed)), options)
    model.to(torch.bfloat16)
    save(options.out, model, tokenizer)
    record = {
        "model": "demo",
        "date": datetime.now(UTC).date().isoformat(),
        "corpus_sha256": corpus.fingerprint(digests),
        "sources": digests,
        "seed": options.seed,
        "steps": options.steps,
        "batch": options.batch,
        "final_loss": round(loss, 4),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "questions": len(entries),
        "recited_word_for_word": recited(model, tokenizer, entries),
        "cpu_seconds": round(time.process_time() - started),
        "torch": str(torch.__version__),
    }
    write_json(options.out / "training.json", record)
    print(json.dumps(record, indent=2))


def changed(folder: Path = FOLDER, root: Path = corpus.ROOT) -> list[str]:
    """Return the sources that are no longer what the model in the folder was trained on."""
    recorded = json.loads((folder / "training.json").read_text(encoding="utf-8"))["sources"]
    return sorted(name for name, digest in corpus.sources(root).items() if recorded.get(name) != digest)


def parser() -> argparse.ArgumentParser:
    """Return the command line of the script."""
    made = argparse.ArgumentParser(
        prog="python -m ops.demo.train",
        description="Train the demo language model: a BPE tokenizer and a Llama of about a million parameters, on "
        f"{corpus.PAGE} and the phrasings in {corpus.PHRASINGS}, and write the model folder. It takes minutes "
        "on a CPU. Needs torch, transformers, tokenizers and safetensors, which the cpu extra brings.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--out", type=Path, default=FOLDER, help="the model folder to write")
    made.add_argument("--check", action="store_true", help="train nothing; name the sources changed since")
    made.add_argument("--steps", type=int, default=1100, help="how many batches to learn from")
    made.add_argument("--batch", type=int, default=32, help="short samples in a batch")
    made.add_argument("--rate", type=float, default=3e-3, help="the highest learning rate")
    made.add_argument("--seed", type=int, default=2, help="seed of the weights and of the order of samples")
    made.add_argument("--threads", type=int, default=2, help="CPU threads that torch may use")
    return made


def main() -> None:
    """Run the command line."""
    options = parser().parse_args()
    if not options.check:
        train(options)
    elif stale := changed(options.out):
        raise SystemExit(f"changed since the demo model was trained: {', '.join(stale)}")
    else:
        print("the demo model was trained on the sources as they are")


if __name__ == "__main__":
    main()
