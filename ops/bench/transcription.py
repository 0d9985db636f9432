"""`python -m ops.bench transcription`: what the queue costs a Whisper, and how long a clip waits behind a long file.

A recording goes, in turn, through faster-whisper's own batched pipeline in a process of its own and through the whole
API as an upload. Then, while the recording is heard again in the normal lane, a clip is submitted in the high one. The
model is one of the catalogue, or one of random weights in the size of Whisper tiny, made here: it costs what a real one
does for so many tokens a chunk. The recording is made here too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from common.catalogue import Catalogue
from common.model import Model
from common.settings import load_settings
from ops.bench import figures
from ops.bench.direct import Direct
from ops.bench.formation import Formation, formation
from ops.bench.report import tables
from ops.bench.servers import BenchFailed
from ops.bench.voice import THRESHOLD, voice, wav
from ops.bench.whisper_model import write_whisper

ALIAS = "whisper"
CLIP_S = 5.0
LIMIT_S = 1800.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `transcription`."""
    parser.add_argument("--model", help="alias in the catalogue (default: random weights)")
    parser.add_argument("--seconds", type=float, default=600, help="length of the recording")
    parser.add_argument("--width", type=int, default=384, help="of the random model: 384 is tiny's, 512 base's")
    parser.add_argument("--layers", type=int, default=4, help="of the random model: 4 are tiny's, 6 base's")
    parser.add_argument("--tokens", type=int, default=96, help="most tokens for a chunk; 30 s of speech have about 90")
    parser.add_argument("--batch-size", type=int, default=8, help="chunks heard at once")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds")
    parser.add_argument("--aof", choices=("everysec", "no", "always"), default="everysec", help="of Redis")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns rounds, medians, ratios and errors."""
    with tempfile.TemporaryDirectory(prefix="jarvis-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        model = _model(options, folder)
        recording, clip = folder / "recording.wav", wav(voice(CLIP_S, seed=1))
        recording.write_bytes(wav(voice(options.seconds)))
        command = [
            sys.executable,
            "-m",
            "ops.bench.direct_transcription",
            model.weights_path(),
            json.dumps(model.options),
        ]
        direct = stack.enter_context(Direct.started(command, folder))
        running = stack.enter_context(formation(model, options.aof))
        rounds: list[dict[str, Any]] = []
        for number in range(-1, options.rounds):  # the first only warms up
            found = _round(direct, running, recording, clip, options.seconds, number)
            if number >= 0:
                rounds.append(found)
    return {
        "settings": {**model.options, "seconds": options.seconds, "model": options.model or _made(options)},
        "rounds": rounds,
        "medians": figures.medians(rounds),
        "ratios": {"vs_direct": figures.ratio(rounds, "api", "speed", ["direct"]), "vs_server": None},
        "errors": [],
    }


def _made(options: argparse.Namespace) -> str:
    return f"random, {options.layers} + {options.layers} layers of {options.width}"


def _model(options: argparse.Namespace, folder: Path) -> Model:
    if options.model:
        found = Catalogue.load(load_settings().catalogue).get("transcription", options.model)
        weights, given = found.weights_path(), found.options
    else:
        weights = str(write_whisper(folder / "model", width=options.width, layers=options.layers, spread=0.05))
        given = {"device": "cpu", "compute_type": "float32"}
        found = Model(ALIAS, "transcription", "faster-whisper", weights, 448, 8)
    own = {"batch_size": options.batch_size, "max_new_tokens": options.tokens, "vad_threshold": THRESHOLD}
    return replace(found, alias=ALIAS, weights=weights, options={**given, **own})


def _round(
    direct: Direct, running: Formation, recording: Path, clip: bytes, seconds: float, number: int
) -> dict[str, dict[str, Any]]:
    def alone() -> dict[str, Any]:
        answer: dict[str, Any] = direct.ask({"file": str(recording)})
        return answer

    def api() -> dict[str, Any]:
        return asyncio.run(_through_api(running, recording.read_bytes()))

    ways = {"direct": alone, "api": api}
    order = list(ways) if number % 2 == 0 else list(reversed(ways))
    answers = {name: ways[name]() for name in order}
    if answers["api"]["characters"] != answers["direct"]["characters"]:
        raise BenchFailed(f"both must hear the same: {answers['api']} and {answers['direct']}")
    found = {name: {**answers[name], "speed": seconds / answers[name]["seconds"]} for name in ways}
    found["api"] |= asyncio.run(_clip_behind(running, recording.read_bytes(), clip))
    if number >= 0:
        print(f"round {number + 1}: " + _line(found), flush=True)
    return found


def _line(found: dict[str, dict[str, Any]]) -> str:
    speeds = ", ".join(f"{name} {one['speed']:.1f}x real time" for name, one in found.items())
    begun, done = found["api"]["clip_begun_s"], found["api"]["clip_done_s"]
    return f"{speeds}; clip begun after {begun:.2f} s, done after {done:.2f} s"


async def _through_api(running: Formation, recording: bytes) -> dict[str, Any]:
    async with _client(running) as client:
        started = time.perf_counter()
        job = await _submit(client, recording, "normal")
        record = await _ended(client, job)
        output = (await client.get(f"/v1/jobs/{job}/result")).json()["output"]
        seconds = time.perf_counter() - started
    worker = next(program for program in running.programs if program.name == "workers")
    return {
        "seconds": seconds,
        "characters": len(output["text"].strip()),
        "rss_mib": _peak_mib(worker.process.pid),
        "run_s": record["metrics"]["run_ms"] / 1000,
    }


async def _clip_behind(running: Formation, recording: bytes, clip: bytes) -> dict[str, float]:
    """Submit a clip when the first segment of a recording is there; both begin and end are seen in its events."""
    async with _client(running) as client:
        long = await _submit(client, recording, "normal")
        await _event(client, long, "segment")
        started = time.perf_counter()
        short = await _submit(client, clip, "high")
        await _event(client, short, "state", "in_progress")
        begun = time.perf_counter() - started
        await _ended(client, short)
        done = time.perf_counter() - started
        beside = (await client.get(f"/v1/jobs/{long}")).json()["status"]
        if beside != "in_progress":
            raise BenchFailed(f"the recording is {beside} before the clip is done: make it longer")
        await _ended(client, long)
    return {"clip_begun_s": begun, "clip_done_s": done}


def _client(running: Formation) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{running.port}", timeout=120, trust_env=False)


async def _submit(client: httpx.AsyncClient, sound: bytes, lane: str) -> str:
    job = {"kind": "transcription", "model": ALIAS, "priority": lane, "params": {"language": "en"}}
    response = await client.post("/v1/jobs", data={"job": json.dumps(job)}, files={"file": ("sound.wav", sound)})
    if response.status_code != 202:
        raise BenchFailed(f"the upload was answered {response.status_code}: {response.text[:300]}")
    accepted: str = response.json()["id"]
    return accepted


async def _event(client: httpx.AsyncClient, job: str, event: str, text: str = "") -> None:
    """Wait for an event of this kind with this text in its data."""
    async with client.stream("GET", f"/v1/jobs/{job}/events") as response:
        kind = ""
        async for line in response.aiter_lines():
            kind = line.removeprefix("event: ") if line.startswith("event: ") else kind
            if line.startswith("data: ") and kind == event and text in line:
                return
    raise BenchFailed(f"{job} has ended without an event {event} {text}")


async def _ended(client: httpx.AsyncClient, job: str) -> dict[str, Any]:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        record: dict[str, Any] = (await client.get(f"/v1/jobs/{job}", params={"wait": 60})).json()
        if record["finished_at"] is not None:
            if record["status"] != "completed":
                raise BenchFailed(f"{job} is {record['status']}: {record['error']}")
            return record
    raise BenchFailed(f"{job} has not ended in {LIMIT_S:.0f} s")


def _peak_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) / 1024


def show(document: dict[str, Any]) -> None:
    """Print the table and, last, the ratios."""
    print(f"\n{tables(document)}\n{figures.last_line(document['ratios'])}")
