"""`python -m producer.batches`: work on batches until it is told to stop. Any number may run."""

from __future__ import annotations

import argparse
import os
import sys

import uvloop

from common.batches import Batches
from common.catalogue import Catalogue
from common.errors import JarvisError
from common.files import Files
from common.queue import Queue
from common.results import Results
from common.service import log_to_stderr, until_signal
from common.settings import Settings, load_settings
from producer.batches.endpoints import Here
from producer.batches.runner import Runner
from producer.batches.stretches import Tools
from producer.submit import Submitter

#: Whoever waits for an answer goes first, on the processor too.
NICE = 5


def main(argv: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code."""
    description = "Work on batches: check their lines, feed them to the queue, write their files. Any number may run."
    argparse.ArgumentParser(prog="python -m producer.batches", description=description).parse_args(argv)
    try:
        settings = load_settings()
        catalogue = Catalogue.load(settings.catalogue)
    except JarvisError as error:
        print(f"batches: {error}", file=sys.stderr)
        return 1
    os.nice(NICE)
    log_to_stderr(settings.log_level)
    uvloop.run(run(settings, catalogue))
    return 0


async def run(settings: Settings, catalogue: Catalogue) -> None:
    """Work until a signal."""
    queue = await Queue.connect(settings)
    results = Results(queue.redis, settings)
    here = Here(Submitter(queue, catalogue, settings), Files(queue.redis, settings), results)
    tools = Tools(here, queue, results, settings)
    try:
        await until_signal("batches", Runner(tools, Batches(queue.redis, settings)).run())
    finally:
        await results.close()
        await queue.close()


if __name__ == "__main__":
    sys.exit(main())
