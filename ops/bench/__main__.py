"""`python -m ops.bench NAME`: measure, print, and keep the result as JSON; `report` and `draw` show results."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from common.errors import JarvisError
from ops.bench import (
    batch,
    chat,
    embedding,
    fairness,
    fault,
    flat,
    generation,
    latency,
    limits,
    machine,
    quantization,
    queues,
    report,
    speculative,
    submit,
    transcription,
    waiting,
)
from ops.bench.servers import BenchFailed

BENCHMARKS: dict[str, tuple[Any, str]] = {
    "queue": (queues, "no-op jobs: throughput, latency and idle cost beside the peers"),
    "latency": (latency, "one job when idle, 50 ms jobs on 10 slots, and what idling costs"),
    "submit": (submit, "requests/s of one web process beside a bare FastAPI route; batched submits"),
    "flat": (flat, "the cost of a job with 1,000 to 1,000,000 waiting; memory a job, and what is left of it"),
    "limits": (
        limits,
        "a job without a key, with one, with limits; others' p99 beside a key that is over its limit",
    ),
    "fairness": (fairness, "one who floods and one who comes later; weights; claims with 10,000 users; what it costs"),
    "fault": (
        fault,
        "SIGKILL to the worker in the middle: seconds until its jobs run again, jobs lost, jobs run twice",
    ),
    "generation": (generation, "tokens/s and time to first token: engine alone, whole API, vLLM's own server"),
    "chat": (chat, "one token waited for beside vLLM's own server; 500 readers of one web process"),
    "embedding": (embedding, "texts/s: one call of the engine alone, jobs through the API, vLLM's own pooling server"),
    "batch": (batch, "callers who wait for vectors, alone and beside a batch: p50, p99; the batch's lines/s"),
    "quantization": (quantization, "a model and quantized copies of it: tokens/s, memory, perplexity, agreement"),
    "speculative": (speculative, "n-gram guesses and a draft model: tokens/s, how many guesses are accepted"),
    "transcription": (transcription, "a long recording: faster-whisper alone, and through the API; a clip behind it"),
    "waiting": (
        waiting,
        "mixed load: how often the p90 of the eta is kept, polls a job by Retry-After, how late they come",
    ),
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m ops.bench",
        description="Measure Jarvis on this machine. Everything is started by the benchmark itself, on free ports and"
        " in temporary folders. Rounds are interleaved; the last line has the medians of same-round ratios.",
    )
    commands = made.add_subparsers(dest="benchmark", required=True, metavar="|".join([*BENCHMARKS, "report", "draw"]))
    for name, (module, text) in BENCHMARKS.items():
        command = commands.add_parser(
            name, help=text, description=module.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        module.add_arguments(command)
        command.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured here")
    tables = commands.add_parser("report", help="result files to the markdown tables of ops/docs/benchmarks.md")
    tables.add_argument("--into", type=Path, metavar="PAGE", help="put them into this page, in place of those there")
    picture = commands.add_parser("draw", help="results of queue and flat to the README's picture (needs matplotlib)")
    picture.add_argument("--out", type=Path, required=True, metavar="FILE.svg")
    for command in (tables, picture):
        command.add_argument("files", type=Path, nargs="+", metavar="FILE")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run one benchmark; returns the exit code."""
    options = parser().parse_args(argv)
    if options.benchmark in ("report", "draw"):
        return made_of(options)
    command = command_of(sys.argv[1:] if argv is None else argv)
    about = machine.describe()
    print(f"{command}\n" + "\n".join(machine.lines(about)), flush=True)
    module = BENCHMARKS[options.benchmark][0]
    signal.signal(signal.SIGTERM, _stop)  # so that what was started is stopped, as after a Ctrl-C
    try:
        measured = module.run(options)
    except (BenchFailed, JarvisError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    document = {"benchmark": options.benchmark, "command": command, "machine": about, **measured}
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    module.show(document)
    return 0


def made_of(options: argparse.Namespace) -> int:
    """A page or a picture out of results; returns the exit code."""
    documents = [json.loads(file.read_text(encoding="utf-8")) for file in options.files]
    try:
        if options.benchmark == "report":
            report.main(documents, options.into)
        else:
            from ops.bench import picture  # matplotlib is for developers only

            picture.save(documents, options.out)
    except BenchFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def command_of(arguments: list[str]) -> str:
    """The command that measures the same again; where this one wrote its result is left out."""
    kept = [one for i, one in enumerate(arguments) if one != "--json" and (i == 0 or arguments[i - 1] != "--json")]
    return shlex.join(["python", "-m", "ops.bench", *(one for one in kept if not one.startswith("--json="))])


def _stop(number: int, _: object) -> None:
    print(f"bench: stopped by {signal.Signals(number).name}", file=sys.stderr)
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
