"""`python -m ops.bench generation`: what the queue costs a language model.

The same prompts go, in turn, straight to the engine class that the worker uses, through the whole API by our own
address and by OpenAI's, and to vLLM's own OpenAI server with the same settings. All are loaded; no two of them work
at the same time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.catalogue import Catalogue, Model
from common.settings import load_settings
from ops.bench import figures, loads
from ops.bench.direct import Direct, generation_command
from ops.bench.formation import formation, write_catalogue
from ops.bench.random_model import grow
from ops.bench.report import tables
from ops.bench.vllm_server import AMX_ALLOWED, ONE_PROCESS, ONE_PROCESS_ENVIRONMENT, VllmServer, vllm_server

#: The arguments of our engine class that decide its speed; vLLM's server gets the same.
ARGUMENTS: dict[str, Any] = {
    "max_num_seqs": 256,
    "max_num_batched_tokens": 8192,
    "disable_log_stats": True,
    **AMX_ALLOWED,
}
#: vLLM's processes wait for work in a busy loop for a second after their last: the next place would pay for it.
SPIN_S = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `generation`."""
    parser.add_argument("--model", default="demo", help="alias in the catalogue; its weights must be a local folder")
    parser.add_argument("--concurrency", type=int, default=64, help="prompts at once")
    parser.add_argument("--max-tokens", type=int, default=128, help="tokens of every answer")
    parser.add_argument("--waves", type=int, default=1, help="prompts of each stream, one after another")
    parser.add_argument("--parameters", type=int, metavar="MILLIONS", help="a model of this size, random weights")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--singles", type=int, default=20, help="single streams a round, for the first token")
    parser.add_argument("--no-server", action="store_true", help="leave vLLM's own server out")
    parser.add_argument(
        "--server-processes",
        choices=("as-ours", "default"),
        default="as-ours",
        help="whether vLLM's own server computes in its engine core, as ours does, or as it starts by itself",
    )
    parser.add_argument("--aof", choices=("everysec", "no", "always"), default="everysec", help="of Redis")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns rounds, medians, ratios and errors."""
    model = Catalogue.load(load_settings().catalogue).get("generation", options.model)
    with tempfile.TemporaryDirectory(prefix="jarvis-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        weights = endless(Path(model.weights_path()), folder / "model")
        if options.parameters:
            grow(weights, options.parameters)
        model = replace(model, weights=str(weights))
        places = _places(model, folder, options, stack)
        rounds = asyncio.run(_rounds(places, options))
    settings = {
        "concurrency": options.concurrency,
        "max_tokens": options.max_tokens,
        "waves": options.waves,
        "server_processes": options.server_processes,
        "parameters": f"{options.parameters} M, random" if options.parameters else "the model's",
        **ARGUMENTS,
        **model.engine_options,
    }
    return {
        "settings": settings,
        "rounds": rounds,
        "medians": figures.medians(rounds),
        "ratios": ratios(rounds),
        "errors": [],
    }


def _places(
    model: Model, folder: Path, options: argparse.Namespace, stack: contextlib.ExitStack
) -> dict[str, loads.Place]:
    print("loading the engine", flush=True)
    command = generation_command(write_catalogue(folder, model))
    places: dict[str, loads.Place] = {"direct": loads.Engine(stack.enter_context(Direct.started(command, folder)))}
    print("starting the formation", flush=True)
    port = stack.enter_context(formation(model, options.aof)).port
    places["api"] = loads.Api(port, model.alias)
    places["openai"] = loads.Completions(port, model.alias)
    if not options.no_server:
        print("starting vLLM's own server", flush=True)
        one_process = options.server_processes == "as-ours" and model.gpu_count == 1
        places["server"] = loads.Completions(
            stack.enter_context(server_of(model, folder, one_process)).port, model.alias
        )
    return places


async def _rounds(places: Mapping[str, loads.Place], options: argparse.Namespace) -> list[dict[str, Any]]:
    for place in places.values():  # every path once before anything counts
        await _measure(place, options, 3)
    names, rounds = list(places), []
    for number in range(options.rounds):
        start = number % len(names)
        found = {}
        for name in [*names[start:], *names[:start]]:
            await asyncio.sleep(SPIN_S)
            found[name] = await _measure(places[name], options, options.singles)
            print(f"round {number + 1}: {name}: {_told(found[name])}", flush=True)
        rounds.append(found)
    return rounds


async def _measure(place: loads.Place, options: argparse.Namespace, singles: int) -> dict[str, Any]:
    at_once, max_tokens = options.concurrency, options.max_tokens
    prompts = loads.prompts(at_once * options.waves)
    whole = await place.whole(prompts, max_tokens, at_once)
    streamed = await place.streamed(prompts, max_tokens, at_once)
    first = [1000 * await place.first_token_s(prompts[i % len(prompts)], max_tokens) for i in range(singles)]
    return {
        "tokens": whole.tokens,
        "tokens_s": whole.tokens / whole.seconds,
        "stream_tokens_s": streamed.tokens / streamed.seconds,
        "stream_first_ms": 1000 * figures.percentile(streamed.first_s, 50),
        "stream_gap_ms": 1000 * figures.percentile(streamed.gaps_s, 50),
        "stream_gap_p99_ms": 1000 * figures.percentile(streamed.gaps_s, 99),
        "first_token_ms": figures.percentile(first, 50),
        "first_token_p99_ms": figures.percentile(first, 99),
    }


def ratios(rounds: list[dict[str, Any]]) -> dict[str, float | None]:
    """Tokens/s through the API over those of the engine and the server; milliseconds added to the first token.

    With all streams at once, against the server: `stream_ttft_added_ms`, and the gap between tokens (p99) over its.
    """
    added = [one["api"]["first_token_ms"] - one["direct"]["first_token_ms"] for one in rounds]
    beside = {"direct": ["direct"], "server": ["server"]}
    found = {f"vs_{name}": figures.ratio(rounds, "api", "tokens_s", them) for name, them in beside.items()}
    found["ttft_added_ms"] = statistics.median(added)
    for name, them in beside.items():
        found[f"vs_{name}_streams"] = figures.ratio(rounds, "api", "stream_tokens_s", them)
    for name, prefix in (("api", ""), ("openai", "openai_")):
        both = [(one[name], one["server"]) for one in rounds if "server" in one and name in one]
        if not both:
            continue
        if prefix:
            found["openai_vs_server_streams"] = figures.ratio(rounds, name, "stream_tokens_s", ["server"])
        added = [ours["stream_first_ms"] - theirs["stream_first_ms"] for ours, theirs in both]
        found[f"{prefix}stream_ttft_added_ms"] = statistics.median(added)
        found[f"{prefix}stream_gap_p99_vs_server"] = figures.ratio(rounds, name, "stream_gap_p99_ms", ["server"])
    return found


def endless(weights: Path, folder: Path) -> Path:
    """A copy of the model whose end token is one it never says, so that every answer has as many tokens as asked.

    It is what `ignore_eos` does, for three places of which one (our API) does not offer it.
    """
    shutil.copytree(weights, folder)
    tokens = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")).get("added_tokens", [])
    ends = _ends(folder)
    other = next((token for token in tokens if token["special"] and token["id"] not in ends), None)
    if other is not None:
        _set(folder / "config.json", "eos_token_id", other["id"])
        _set(folder / "generation_config.json", "eos_token_id", other["id"])
        _set(folder / "tokenizer_config.json", "eos_token", other["content"])
    return folder


def _ends(folder: Path) -> set[int]:
    value = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("eos_token_id")
    return set(value) if isinstance(value, list) else {value}


def _set(file: Path, name: str, value: Any) -> None:
    if file.exists():
        document = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**document, name: value}), encoding="utf-8")


def server_of(model: Model, folder: Path, one_process: bool = True) -> contextlib.AbstractContextManager[VllmServer]:
    """vLLM's own server with the settings of our engine."""
    process = ONE_PROCESS if one_process else {}
    own = {"model": model.weights_path(), "served_model_name": model.alias, "max_model_len": model.max_model_len}
    return vllm_server(
        {**own, **ARGUMENTS, **process, **model.engine_options},
        folder,
        ONE_PROCESS_ENVIRONMENT if one_process else None,
    )


def _told(row: Mapping[str, Any]) -> str:
    return (
        f"{row['tokens_s']:,.0f} tokens/s, streams {row['stream_tokens_s']:,.0f}, first token"
        f" {row['first_token_ms']:.1f} ms ({row['tokens']} tokens); all streams: first {row['stream_first_ms']:.0f} ms,"
        f" gaps {row['stream_gap_ms']:.1f}, p99 {row['stream_gap_p99_ms']:.1f} ms"
    )


def show(document: dict[str, Any]) -> None:
    """Print the table and, last, the ratios."""
    print(f"\n{tables(document)}\n{figures.last_line(document['ratios'])}")
