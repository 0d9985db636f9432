"""`python -m workers generation`: start one worker. Takes the flags an arq user knows.

This module stays light: vLLM's engine core is a spawned process that imports the worker's main module again.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.settings import Settings

KINDS = ("generation", "embedding", "transcription")
DELIVERY = "delivery"  # sends webhooks: no queue of jobs, no model


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m workers",
        description="Run one worker: a kind of the catalogue, or an arq-style settings class (package.module.Class).",
    )
    parser.add_argument(
        "what",
        help="generation, embedding, transcription, delivery (sends webhooks), or the import path of a settings class",
    )
    parser.add_argument("--model", help="alias in the catalogue (default: the kind's first)")
    parser.add_argument(
        "--for", dest="helped", metavar="ALIAS", help="run this alias' jobs, which fall back to --model, not its own"
    )
    parser.add_argument("--slots", type=int, help="jobs to run at once (default: the catalogue's)")
    parser.add_argument("--device", help="GPUs to hold (1 or 0,1), auto, or cpu (default: a free one of this node)")
    parser.add_argument("--no-wait", action="store_true", help="end when the GPUs are taken; --burst does so too")
    parser.add_argument("--tensor-parallel", type=int, metavar="N", help="GPUs that share every layer of the model")
    parser.add_argument("--pipeline-parallel", type=int, metavar="N", help="GPUs (or groups) that share out its layers")
    parser.add_argument("--burst", action="store_true", help="exit once no job is left")
    parser.add_argument("--check", action="store_true", help="say whether a live worker serves the queue, and exit")
    parser.add_argument("--watch", metavar="DIR", help="start again whenever a file in this folder changes")
    parser.add_argument("-v", "--verbose", action="store_true", help="log every move of a job")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the worker to its end; returns the exit code."""
    args = parser().parse_args(argv)
    from arq.constants import default_queue_name

    from common.errors import JarvisError
    from common.service import log_to_stderr
    from common.settings import load_settings
    from workers.settings_class import effective_settings

    try:
        settings = load_settings(**of_flags(args))
        log_to_stderr("debug" if args.verbose else settings.log_level)
        logging.getLogger("arq").setLevel("WARNING")
        if args.what == DELIVERY:
            return deliver(settings)
        spread = {"tensor_parallel": args.tensor_parallel, "pipeline_parallel": args.pipeline_parallel}
        kwargs = worker_settings(args.what, args.model, settings, spread, args.helped)
        if args.check:
            queue = kwargs.get("queue_name", default_queue_name)
            return asyncio.run(check(queue, effective_settings(settings, kwargs)))
        if args.watch:
            return watch(args.watch, argv if argv is not None else sys.argv[1:])
        run(kwargs, burst=args.burst)
    except JarvisError as error:
        print(f"workers: {error}", file=sys.stderr)
        return 1
    return 0


def of_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that flags set."""
    values: dict[str, Any] = {"slots": args.slots, "device": args.device}
    if args.no_wait or args.burst:
        values["device_wait"] = False
    return {name: value for name, value in values.items() if value is not None}


def worker_settings(
    what: str,
    model: str | None,
    settings: Settings,
    spread: dict[str, int | None] | None = None,
    helped: str | None = None,
) -> dict[str, Any]:
    """The worker's settings for a kind of the catalogue or a settings class."""
    from common.errors import SettingsInvalid

    if helped and (what != "generation" or not model):
        raise SettingsInvalid("--for belongs to `generation --model ALIAS`: the model that runs another alias' jobs")

    if what not in KINDS:
        return {"settings": settings, **_of_class(what)}
    from common.catalogue import Catalogue

    catalogue = Catalogue.load(settings.catalogue)
    models = catalogue.of_kind(what)
    if not models:
        raise SettingsInvalid(f"{settings.catalogue} has no {what} model")
    chosen = (catalogue.get(what, model) if model else models[0]).spread(**spread or {})
    if helped:
        from workers.fallback import settings_for as fallback_settings_for

        return {"settings": settings, **fallback_settings_for(catalogue, chosen, helped, settings)}
    if what == "generation":
        from workers.generation import settings_for
    elif what == "embedding":
        from workers.embedding import settings_for
    else:
        from workers.transcription import settings_for
    return {"settings": settings, **settings_for(chosen, settings)}


def _of_class(name: str) -> dict[str, Any]:
    from arq.utils import import_string

    from common.errors import SettingsInvalid
    from workers.settings_class import get_kwargs

    sys.path.append(str(Path.cwd()))
    try:
        return get_kwargs(import_string(name))
    except ImportError as error:
        raise SettingsInvalid(f"{name!r} is neither one of {', '.join(KINDS)} nor a settings class: {error}") from error


def deliver(settings: Settings) -> int:
    """Send webhooks until a signal; returns the exit code."""
    import uvloop

    uvloop.run(delivering(settings))
    return 0


async def delivering(settings: Settings) -> None:
    """Send webhooks until a signal, and end the attempts under way."""
    from common.queue import Queue
    from common.service import until_signal
    from workers.delivery import Deliverer

    # They would write addresses into the log, and in those there may be secrets.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel("WARNING")
    queue = await Queue.connect(settings)
    try:
        await until_signal("delivery", Deliverer(queue).run())
    finally:
        await queue.close()


def run(kwargs: dict[str, Any], burst: bool) -> None:
    """Run on uvloop until a signal, or until nothing is left."""
    import uvloop

    from common.errors import SettingsInvalid
    from workers.worker import Worker, create_worker

    loop = uvloop.new_event_loop()  # before the worker is made: its signal handlers go on this loop
    asyncio.set_event_loop(loop)
    try:
        worker: Worker
        if "helped" in kwargs:
            from workers.fallback import FallbackWorker

            worker = FallbackWorker(**kwargs, burst=burst)
        else:
            worker = create_worker(kwargs, **({"burst": True} if burst else {}))
    except (RuntimeError, TypeError, ValueError) as error:
        raise SettingsInvalid(f"the settings class is wrong: {error}") from error
    worker.run()


async def check(queue: str, settings: Settings) -> int:
    """0 when a live worker serves the queue, 1 when none does."""
    from common.queue import Queue
    from common.results import Results

    client = await Queue.connect(settings)
    try:
        workers = await Results(client.redis, settings).workers(queue)
    finally:
        await client.close()
    for worker in workers:
        share = worker.get("gpu_share")
        of_it = f" (share {share:g})" if share else ""
        print(f"{queue}: {worker['id']} with {worker['slots']} slots on {worker['device']}{of_it}")
    if not workers:
        print(f"{queue}: no live worker", file=sys.stderr)
    return 0 if workers else 1


def watch(folder: str, argv: list[str]) -> int:
    """Run the same command without --watch, and start it again when a file changes."""
    from watchfiles import PythonFilter, run_process

    rest = [part for i, part in enumerate(argv) if part != "--watch" and (i == 0 or argv[i - 1] != "--watch")]
    rest = [part for part in rest if not part.startswith("--watch=")]
    command = " ".join([sys.executable, "-m", "workers", *rest])
    run_process(folder, target=command, target_type="command", watch_filter=PythonFilter())
    return 0


if __name__ == "__main__":
    sys.exit(main())
