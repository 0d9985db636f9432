"""`python -m scheduler`: run one scheduler; any number may run."""

from __future__ import annotations

import argparse
import sys

import uvloop

from common.errors import JarvisError
from common.queue import Queue
from common.service import log_to_stderr, until_signal
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
    log_to_stderr(settings.log_level)
    uvloop.run(run(settings, recurring))
    return 0


async def run(settings: Settings, recurring: Recurring | None) -> None:
    """Work until a signal."""
    queue = await Queue.connect(settings)
    try:
        await until_signal("scheduler", Scheduler(queue, recurring).run())
    finally:
        await queue.close()


if __name__ == "__main__":
    sys.exit(main())
