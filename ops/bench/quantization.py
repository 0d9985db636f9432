"""`python -m ops.bench quantization`: what quantized weights cost in quality and give in speed, on this machine.

The same prompts go to a model and to quantized copies of it (rounded to nearest, without calibration), each alone in
a process of its own, one after another. Quality is perplexity, and agreement with the model's own greedy tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.catalogue import Catalogue, Model
from common.settings import load_settings
from ops.bench import loads, quantize, report
from ops.bench.machine import ROOT
from ops.bench.servers import BenchFailed
from ops.model_weights import size_bytes

BASE = "unquantized"
ONLINE = ("fp8_per_channel",)  # quantized while plain weights load
COLUMNS: tuple[report.Column, ...] = (
    ("tokens_s", "tokens/s", 0),
    ("start_s", "start s", 1),
    ("weights_mb", "weights MB", 2),
    ("rss_mib", "RSS MiB", 0),
    ("perplexity", "perplexity", 3),
    ("same_percent", "same greedy tokens %", 1),
    ("prefix_tokens", "tokens until they differ", 1),
)
TEXT_CHARACTERS = 8000
LIMIT_S = 900.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `quantization`."""
    parser.add_argument("--model", default="demo", help="alias in the catalogue; its weights must be a local folder")
    parser.add_argument("--concurrency", type=int, default=16, help="prompts at once")
    parser.add_argument("--max-tokens", type=int, default=32, help="tokens of every answer")
    parser.add_argument("--rounds", type=int, default=3, help="times that the prompts are answered")
    parser.add_argument("--text", type=Path, default=ROOT / "ops" / "docs" / "questions.md", help="for the perplexity")
    parser.add_argument(
        "--variants", nargs="+", choices=[*quantize.WRITERS, *ONLINE], default=["awq", "gptq", "int8", *ONLINE]
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns a table, ratios to the model itself, and errors."""
    model = Catalogue.load(load_settings().catalogue).get("generation", options.model)
    rows: dict[str, dict[str, Any]] = {}
    errors = []
    with tempfile.TemporaryDirectory(prefix="jarvis-bench-") as name:
        for variant in (BASE, *options.variants):
            try:
                rows[variant] = measured(model, variant, Path(name), options)
            except (BenchFailed, RuntimeError) as error:  # torch raises it where a layer's shape does not divide
                errors.append(f"{variant}: {error}")
                continue
            print(f"{variant}: {rows[variant]['tokens_s']:,.0f} tokens/s", flush=True)
    if BASE not in rows:
        raise BenchFailed(errors[0])
    compare(rows)
    ratios = {
        f"{row}_tokens_s": found["tokens_s"] / rows[BASE]["tokens_s"] for row, found in rows.items() if row != BASE
    }
    settings = {"concurrency": options.concurrency, "max_tokens": options.max_tokens, "text": options.text.name}
    tables = [report.as_table(COLUMNS, {row: {**found, "ids": None} for row, found in rows.items()})]
    return {"settings": settings, "rounds": [], "tables": tables, "ratios": ratios, "errors": errors}


def measured(model: Model, variant: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One row; raises BenchFailed when vLLM cannot run it."""
    weights, more = Path(model.weights_path()), {}
    if variant in quantize.WRITERS:
        weights = quantize.WRITERS[variant](weights, folder / variant)
    elif variant != BASE:
        more = {"quantization": variant}
    arguments = {**model.engine_options, **more, "model": str(weights), "max_model_len": model.max_model_len}
    asked = {
        "arguments": arguments,
        "prompts": loads.prompts(options.concurrency),
        "max_tokens": options.max_tokens,
        "rounds": options.rounds,
        "text": options.text.read_text(encoding="utf-8")[:TEXT_CHARACTERS],
    }
    found = answered(asked)
    tokens = sum(map(len, found["ids"]))
    return {
        "tokens_s": tokens / statistics.median(found["seconds"]),
        "start_s": found["start_s"],
        "weights_mb": sum(map(size_bytes, weights.glob("*.safetensors"))) / 1e6,
        "rss_mib": found["rss_mib"],
        "perplexity": math.exp(-statistics.fmean(found["logprobs"])),
        "ids": found["ids"],
    }


def compare(rows: dict[str, dict[str, Any]], base: str = BASE) -> None:
    """Add to each row how its greedy tokens agree with the model's own."""
    own = rows[base]["ids"]
    for row in rows.values():
        pairs = list(zip(own, row["ids"], strict=True))
        same = [a == b for one, other in pairs for a, b in zip(one, other, strict=True)]
        row["same_percent"] = 100 * statistics.fmean(same)
        row["prefix_tokens"] = statistics.fmean(prefix(one, other) for one, other in pairs)


def prefix(one: list[int], other: list[int]) -> int:
    """How many tokens two answers have in common before they differ."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))


def answered(question: dict[str, Any]) -> Any:
    """What `ops.bench.offline` answers; raises BenchFailed when vLLM cannot run it."""
    command = [sys.executable, "-m", "ops.bench.offline"]
    done = subprocess.run(
        command, input=json.dumps(question), capture_output=True, text=True, cwd=ROOT, timeout=LIMIT_S, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"start_s"')]
    if done.returncode or not lines:
        raise BenchFailed(last_error(done.stderr))
    return json.loads(lines[-1])


def last_error(text: str) -> str:
    """The line of a traceback that says what it was."""
    return next(_errors(text), text.strip()[-500:])


def _errors(text: str) -> Iterator[str]:
    for line in reversed(text.splitlines()):
        told = line.partition("]:")[2] if line.startswith("[") else line
        if "Error: " in told:
            yield told.strip()


def show(document: dict[str, Any]) -> None:
    """Print the table and, last, the ratios."""
    report.show(document)
