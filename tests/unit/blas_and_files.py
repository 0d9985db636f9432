"""Decodes files on uvloop while other threads multiply matrices, as a worker does; ends with 0 when all came out."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import uvloop

from ops.bench.voice import wav
from workers.audio import AudioLimits, decode

FILES = 40


def multiply(over: threading.Event) -> None:
    """Keep the BLAS library's own threads busy."""
    filters, spectrum = np.ones((80, 201), np.float32), np.ones((201, 3000), np.float32)  # as of half a minute
    while not over.is_set():
        filters @ spectrum


async def main() -> None:
    over = threading.Event()
    threads = [threading.Thread(target=multiply, args=(over,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    data = wav(np.ones(1600, np.int16))
    try:
        for _ in range(FILES // 4):
            await asyncio.gather(*(decode(data, AudioLimits(10.0)) for _ in range(4)))
    finally:
        over.set()
    # Waited for, never daemons: OpenBLAS ends its own threads at exit, and waits for ever for one that another has just
    # given work to.
    for thread in threads:
        await asyncio.to_thread(thread.join)


if __name__ == "__main__":
    uvloop.run(main())
