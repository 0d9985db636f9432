"""Runs the Procfile and keeps it running: the thinnest layer over honcho's own parser and printer.

A process that ends is started again after a capped, growing pause; SIGTERM and SIGINT end them all in order.
`honcho start -p 8000` and `honcho export -p 8000 systemd FOLDER` read the same Procfile.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import itertools
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path

from honcho import environ
from honcho.colour import get_colours
from honcho.printer import Message, Printer

from common.errors import JarvisError
from common.settings import Settings, load_settings
from ops import embedded_redis, first_key
from ops.process import Backoff, Program, Say, Supervised
from ops.ready import announce

#: The one process that listens; it alone gets $PORT, base plus its index, as honcho counts.
WEB = "web"
REDIS = "redis"
#: Longer than a process' own grace, so that one which drains in order is never cut short.
GRACE_MARGIN_S = 5.0
REDIS_START_LIMIT_S = 60.0


# --- the formation


def read_formation(procfile: str, concurrency: Mapping[str, int], port: int, only: Iterable[str] = ()) -> list[Program]:
    """Return the programs that a Procfile's text describes; only `web` gets a $PORT."""
    processes = environ.parse_procfile(procfile).processes
    unknown = sorted((set(only) | set(concurrency)) - set(processes))
    if unknown:
        raise ValueError(f"not in the Procfile: {', '.join(unknown)}; it has {', '.join(processes)}")
    chosen = {name: command for name, command in processes.items() if not only or name in only}
    programs = []
    for name, command in chosen.items():
        for index in range(concurrency.get(name, 1)):
            own = {"HONCHO_PROCESS_NAME": f"{name}.{index + 1}"}
            if name == WEB:
                own["PORT"] = str(port + index)
            programs.append(Program(f"{name}.{index + 1}", command, own))
    return programs


def parse_concurrency(text: str | None) -> dict[str, int]:
    """Return {"generation": 2, "web": 1} for `generation=2,web=1`, as `honcho start -c` reads it."""
    wanted: dict[str, int] = {}
    for item in (text or "").split(","):
        if not item:
            continue
        name, separator, count = item.partition("=")
        if not separator or not count.isdigit():
            raise ValueError(f"{item!r} is not name=count")
        wanted[name.strip()] = int(count)
    return wanted


# --- all of them


class Supervisor:
    """The formation: starts it, forwards SIGTERM and SIGINT, and ends when all of it has ended."""

    def __init__(self, programs: list[Program], grace_s: float, say: Say) -> None:
        self.processes = [Supervised(program, say, Backoff()) for program in programs]
        self.stopping = asyncio.Event()
        self._grace_s = grace_s
        self._say = say
        self._asked = 0

    async def run(self, redis_url: str | None = None, before: Callable[[], Awaitable[None]] | None = None) -> int:
        """Run until a signal, Redis first when it is ours to run, `before` the others; return an exit status."""
        self._listen()
        first = [process for process in self.processes if process.program.name == REDIS]
        tasks = [asyncio.create_task(process.run()) for process in first]
        started = not first or redis_url is None or await self._redis_answers(redis_url)
        if started and before is not None and not self.stopping.is_set():
            await before()
        if started and not self.stopping.is_set():
            rest = [process for process in self.processes if process not in first]
            tasks += [asyncio.create_task(process.run()) for process in rest]
            await self.stopping.wait()
        await self._stop(tasks)
        return 0 if started else 1

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._notice_ends)
        for what in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(what, self._ask_to_stop, what)

    def _notice_ends(self) -> None:
        # One SIGCHLD may stand for several ends.
        for process in self.processes:
            process.notice_end()

    def _ask_to_stop(self, what: signal.Signals) -> None:
        self._asked += 1
        if self._asked == 1:
            self._say("system", f"{what.name}: stopping, up to {self._grace_s:.0f} s; once more to stop at once")
            self.stopping.set()
        else:
            for process in self.processes:
                process.kill()

    async def _redis_answers(self, url: str) -> bool:
        deadline = time.monotonic() + REDIS_START_LIMIT_S
        while time.monotonic() < deadline and not self.stopping.is_set():
            if await asyncio.to_thread(embedded_redis.answers, url):
                return True
            await asyncio.sleep(0.05)
        if not self.stopping.is_set():
            self._say("system", "Redis did not start, so nothing else does")
        return self.stopping.is_set()

    async def _stop(self, tasks: list[asyncio.Task[None]]) -> None:
        # Redis goes last: workers hand their jobs back through it.
        late = [process for process in self.processes if process.program.name == REDIS]
        soon = [process for process in self.processes if process not in late]
        running = dict(zip([*late, *soon], tasks, strict=False))
        for group in (soon, late):
            for process in group:
                process.stop()
            await self._wait_or_kill([(process, running[process]) for process in group if process in running])

    async def _wait_or_kill(self, group: list[tuple[Supervised, asyncio.Task[None]]]) -> None:
        if not group:
            return
        _, slow = await asyncio.wait([task for _, task in group], timeout=self._grace_s)
        for process, task in group:
            if task in slow:
                self._say(process.program.name, f"did not end in {self._grace_s:.0f} s: killing it")
                process.kill()
        await asyncio.gather(*(task for _, task in group))


# --- what a person sees


class Prefixed:
    """Prints lines as honcho does: time, process name, line."""

    def __init__(self, names: Iterable[str]) -> None:
        names = ["system", *names]
        self._printer = Printer(sys.stdout, width=max(map(len, names)))
        self._colours = dict(zip(names, itertools.cycle(get_colours()), strict=False))

    def __call__(self, name: str, text: bytes | str) -> None:
        now = datetime.datetime.now()
        try:
            self._printer.write(Message("line", text, now, name, self._colours.get(name)))
        except BrokenPipeError:
            # Whoever read our output is gone; the formation goes on without a reader.
            self._printer.output = Path(os.devnull).open("w")  # noqa: SIM115


# --- the command


def prepare_environment(folder: Path) -> None:
    """Let children find this Python as `python`, print at once, and see what `.env` says, as under honcho."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    dotenv = folder / ".env"
    if dotenv.is_file():
        os.environ.update(environ.parse(dotenv.read_text()))


def with_redis(programs: list[Program], settings: Settings) -> tuple[list[Program], list[str]]:
    """Put our own Redis before the programs when none answers, else return what to say about that one."""
    running = embedded_redis.find_running(settings.redis_url)
    if running is not None:
        return programs, running.lines()
    return [
        Program(REDIS, "python -m ops.embedded_redis"),
        *programs,
    ], []


async def supervise(programs: list[Program], settings: Settings, notes: list[str]) -> int:
    """Run the programs until a signal asks to stop; return an exit status."""
    say = Prefixed(program.name for program in programs)
    for note in notes:
        say("system", note)
    supervisor = Supervisor(programs, settings.grace_s + GRACE_MARGIN_S, say)
    ports = [program.environment["PORT"] for program in programs if "PORT" in program.environment]
    announcer = None
    serves = any(program.name.startswith(f"{WEB}.") for program in programs)

    async def first() -> None:
        for line in await first_key.ensure(settings):
            say("system", line)

    if ports:
        host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
        kinds = {program.name.partition(".")[0] for program in programs}
        announcer = asyncio.create_task(
            announce(f"http://{host}:{ports[0]}", kinds, supervisor.stopping, say, settings.data_dir)
        )
    status = await supervisor.run(settings.redis_url, first if serves else None)
    if announcer is not None:
        announcer.cancel()
    return status


def main(arguments: list[str] | None = None) -> int:
    """Run the Procfile in this folder and keep it running."""
    parser = argparse.ArgumentParser(prog="python -m ops.supervise", description=main.__doc__)
    parser.add_argument("processes", nargs="*", help="only these (default: all)")
    parser.add_argument("-c", "--concurrency", metavar="NAME=COUNT,…", help="how many of each, e.g. generation=2")
    parser.add_argument("-f", "--procfile", type=Path, default=Path("Procfile"))
    parser.add_argument("-p", "--port", type=int, help="port of web.1 (default: $PORT, else 8000)")
    parser.add_argument("--redis", action="store_true", help="start a Redis too when none answers")
    options = parser.parse_args(arguments)
    prepare_environment(options.procfile.parent)
    try:
        settings = load_settings()
        port = options.port or settings.port
        counts = parse_concurrency(options.concurrency)
        programs = read_formation(options.procfile.read_text(), counts, port, options.processes)
        notes: list[str] = []
        if options.redis:
            programs, notes = with_redis(programs, settings)
    except (ValueError, OSError, JarvisError, embedded_redis.RedisUnavailable) as error:
        print(f"supervise: {error}", file=sys.stderr)
        return 1
    return asyncio.run(supervise(programs, settings, notes))


if __name__ == "__main__":
    sys.exit(main())
