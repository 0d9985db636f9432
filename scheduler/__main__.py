"""`python -m scheduler`: run one scheduler; any number may run."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys

import uvloop

from common.errors import JarvisError
from common.queue import Queue
from common.settings import Settings, load_settings
from scheduler.recurring import Recurring
from scheduler.scheduler import Scheduler


def main(argv: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code."""
    description = "Run one scheduler: due jobs, rescue, expiry, recurring jobs. Any number may run."
    argparse.ArgumentParser(prog="python -m scheduler", description=description).parse_args(argv)
    try:
        settings = load_settings()
        recurring = Recurring.load(settings.recurring) if settings.recurring else None
    except JarvisError as error:
        print(f"scheduler: {error}", file=sys.stderr)
        return 1
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    uvloop.run(run(settings, recurring))
    return 0


async def run(settings: Settings, recurring: Recurring | None) -> None:
    """Work until a signal."""
    queue = await Queue.connect(settings)
    work = asyncio.ensure_future(Scheduler(queue, recurring).run())
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, work.cancel)
    logging.getLogger("jarvis.scheduler").info("scheduler ready")
    try:
        await work
    except asyncio.CancelledError:
        pass
    finally:
        await queue.close()


if __name__ == "__main__":
    sys.exit(main())
