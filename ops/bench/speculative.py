"""`python -m ops.bench speculative`: what guessing tokens gives in speed on this machine, and how often it is right.

The same prompts go to a model alone, with n-gram guesses and with a draft model, each in a process of its own, one
after another. Guesses change no answer: how many greedy tokens agree is measured too. Without `--draft` the model
drafts for itself, which is right almost always and saves nothing: the most that guessing can be right.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from common.catalogue import Catalogue, Model
from common.settings import load_settings
from ops.bench import loads, report
from ops.bench.quantization import answered, compare
from ops.bench.servers import BenchFailed

BASE = "alone"
COLUMNS: tuple[report.Column, ...] = (
    ("tokens_s", "tokens/s", 0),
    ("accepted_percent", "guesses accepted %", 1),
    ("per_step", "tokens a step", 2),
    ("same_percent", "same greedy tokens %", 1),
    ("start_s", "start s", 1),
    ("rss_mib", "RSS MiB", 0),
)
TEXT = "A job waits in its lane. A worker claims it."  # its perplexity is not shown: guessing does not change it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `speculative`."""
    parser.add_argument("--model", default="demo", help="alias in the catalogue; its weights must be a local folder")
    parser.add_argument("--draft", help="alias of the draft model (default: the model itself)")
    parser.add_argument("--tokens", type=int, default=3, help="guessed at a time")
    parser.add_argument("--concurrency", type=int, default=4, help="prompts at once: guessing is for few")
    parser.add_argument("--max-tokens", type=int, default=128, help="tokens of every answer")
    parser.add_argument("--rounds", type=int, default=3, help="times that the prompts are answered")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns a table, ratios to the model alone, and errors."""
    catalogue = Catalogue.load(load_settings().catalogue)
    model = catalogue.get("generation", options.model)
    draft = catalogue.get("generation", options.draft or options.model)
    variants: dict[str, dict[str, Any] | None] = {
        BASE: None,
        "ngram": {"method": "ngram", "prompt_lookup_max": 4, "prompt_lookup_min": 2},
        "draft": {"method": "draft_model", "model": draft.weights_path()},
    }
    rows: dict[str, dict[str, Any]] = {}
    errors = []
    for name, how in variants.items():
        try:
            rows[name] = _measured(model, how, options)
        except BenchFailed as error:
            errors.append(f"{name}: {error}")
            continue
        print(f"{name}: {rows[name]['tokens_s']:,.0f} tokens/s", flush=True)
    if BASE not in rows:
        raise BenchFailed(errors[0])
    compare(rows, BASE)
    ratios = {
        f"{name}_tokens_s": row["tokens_s"] / rows[BASE]["tokens_s"] for name, row in rows.items() if name != BASE
    }
    shown = {name: {**row, "ids": None} for name, row in rows.items()}
    settings = {name: getattr(options, name) for name in ("concurrency", "max_tokens", "tokens", "draft")}
    tables = [report.as_table(COLUMNS, shown)]
    return {"settings": settings, "rounds": [], "tables": tables, "ratios": ratios, "errors": errors}


def _measured(model: Model, how: dict[str, Any] | None, options: argparse.Namespace) -> dict[str, Any]:
    """One row; raises BenchFailed when vLLM cannot run it."""
    more = {"speculative_config": {**how, "num_speculative_tokens": options.tokens}} if how else {}
    arguments = {**model.engine_options, **more, "model": model.weights_path(), "max_model_len": model.max_model_len}
    found = answered(
        {
            "arguments": arguments,
            "prompts": loads.prompts(options.concurrency),
            "max_tokens": options.max_tokens,
            "rounds": options.rounds,
            "text": TEXT,
        }
    )
    row = {
        "tokens_s": sum(map(len, found["ids"])) / statistics.median(found["seconds"]),
        "start_s": found["start_s"],
        "rss_mib": found["rss_mib"],
        "ids": found["ids"],
    }
    guessed = found["guesses"]
    if guessed["drafts"]:
        row["accepted_percent"] = 100 * guessed["accepted"] / guessed["tokens"]
        row["per_step"] = 1 + guessed["accepted"] / guessed["drafts"]
    return row


show = report.show
