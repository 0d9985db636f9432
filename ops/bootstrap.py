"""Makes `.venv` from nothing but a Python: the pinned set where the lock fits, resolved ranges elsewhere.

Standard library only, and plain enough for an old `python3` to run, since it looks for a better one. It knows
no package index of its own: uv's or pip's settings say where packages come from. A second run ends at the
stamp file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "ops" / "requirements.lock"
OVERRIDES = ROOT / "ops" / "overrides.txt"
VENV = Path(os.environ.get("JARVIS_VENV", str(ROOT / ".venv")))
STAMP = VENV / ".jarvis-bootstrap"
#: The lock holds wheels for this one; the CPU set is measured on it.
LOCK_PYTHON = "3.11"
PYTHONS = ("python3.11", "python3.12", "python3.13", "python3.14", "python3")


def main() -> int:
    """Bring `.venv` up to date for one extra: `cpu`, `gpu`, or `core` (no engines); return an exit status."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("extra", nargs="?", default="auto", choices=("auto", "cpu", "gpu", "core"))
    parser.add_argument("--force", action="store_true", help="install again even when nothing changed")
    parser.add_argument("--lock", action="store_true", help="resolve ops/requirements.lock anew instead")
    arguments = parser.parse_args()
    if arguments.lock:
        lock(make_venv())
        return 0
    extra = choose_extra(arguments.extra)
    stamp = stamp_text(extra)
    if not arguments.force and STAMP.is_file() and STAMP.read_text() == stamp:
        return 0
    started = time.monotonic()
    python = make_venv()
    install(python, extra)
    STAMP.write_text(stamp)
    say(f"{VENV.name} is ready for extra '{extra}' after {time.monotonic() - started:.0f} s")
    return 0


def say(text: str) -> None:
    """Print one line, marked as ours."""
    print(f"bootstrap: {text}", flush=True)


def choose_extra(wanted: str) -> str:
    """Return the extra to install: what was asked for, else `gpu` where nvidia-smi works, else `cpu`."""
    if wanted != "auto":
        return wanted
    program = shutil.which("nvidia-smi")
    if program and subprocess.run([program, "-L"], capture_output=True, check=False).returncode == 0:
        say("nvidia-smi works, so the extra is 'gpu' (EXTRA=cpu for the other)")
        return "gpu"
    return "cpu"


def stamp_text(extra: str) -> str:
    """Return what the stamp file holds when `.venv` is up to date with the lock and the project file."""
    digest = hashlib.sha256()
    for source in (LOCK, OVERRIDES, ROOT / "pyproject.toml"):
        digest.update(source.read_bytes())
    return f"{extra} {digest.hexdigest()}\n"


# --- the environment


def make_venv() -> Path:
    """Return the Python of `.venv`, made when it is missing or broken."""
    python = VENV / "bin" / "python"
    if python.is_file() and version_of(str(python)) is not None:
        return python
    base = find_python()
    say(f"making {VENV.name} with {base} ({version_of(base)})")
    attempts = [[base, "-m", "venv", "--clear", str(VENV)], [base, "-m", "virtualenv", "--clear", str(VENV)]]
    uv = shutil.which("uv")
    if uv:
        attempts.append([uv, "venv", "--clear", "--seed", "--python", base, str(VENV)])
    if not any(succeeds(attempt) for attempt in attempts):
        raise SystemExit(
            "bootstrap: no virtual environment could be made; tried:\n  "
            + "\n  ".join(" ".join(attempt) for attempt in attempts)
            + "\nOn Debian and Ubuntu the package python3-venv is what is missing."
        )
    return python


def find_python() -> str:
    """Return the first Python on the PATH that is new enough, 3.11 preferred."""
    for name in PYTHONS:
        found = shutil.which(name)
        version = version_of(found) if found else None
        if found and version and version >= (3, 11):
            return found
    raise SystemExit(f"bootstrap: Python 3.11 or newer is needed; none of {', '.join(PYTHONS)} is that")


def version_of(python: str) -> tuple[int, int] | None:
    """Return (major, minor) of a Python program, None when it does not run."""
    code = "import sys; print(*sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return None
    major, minor = done.stdout.split()
    return int(major), int(minor)


# --- what goes into it


def install(python: Path, extra: str) -> None:
    """Install the set and the project itself, editable."""
    uv = install_uv(python)
    version = version_of(str(python))
    here = f"Python {version[0]}.{version[1]} on {platform.system()} {platform.machine()}" if version else "?"
    lock_fits = here == f"Python {LOCK_PYTHON} on Linux x86_64"
    if extra == "cpu" and lock_fits:
        install_locked(python, uv)
    else:
        say(f"the lock is for the CPU set with {LOCK_PYTHON} on Linux x86_64; here: '{extra}', {here}.")
        say("Resolving the ranges of pyproject.toml instead.")
        install_resolved(python, uv, extra)


def install_uv(python: Path) -> list[str]:
    """Install uv into `.venv` with pip and return how to call it there."""
    if not succeeds([str(python), "-m", "pip", "install", "--quiet", "uv"]):
        raise SystemExit("bootstrap: pip could not install uv; its message is above")
    # Compiled once here: the engines import thousands of modules, in every worker and in every engine process, and
    # where bytecode is not written (PYTHONDONTWRITEBYTECODE) each of them would compile those again.
    return [str(python), "-m", "uv", "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python)]


def install_locked(python: Path, uv: list[str]) -> None:
    """Install the lock as it stands; where the CPU build of torch comes from is all that differs."""
    locked = ["--no-deps", "-r", str(LOCK)]
    folders = wheel_folders(python)
    wheel = find_torch_wheel(folders)
    if wheel:
        say(f"CPU build of torch: {wheel.name}, from pip's find-links folder {wheel.parent}")
        first = [*uv, "--find-links", str(wheel.parent), *locked]
    else:
        named = ", ".join(folders) or "not set"
        say(f"CPU build of torch: none in pip's find-links ({named}), so uv looks for it")
        first = [*uv, "--torch-backend", "cpu", *locked]
    # Last comes pip itself: it knows indexes, mirrors and wheel folders from its own settings.
    run_first_that_works([first, [str(python), "-m", "pip", "install", "--quiet", *locked]])
    install_project(python, uv)


def install_project(python: Path, uv: list[str]) -> None:
    """Install this checkout, editable, against what is already there."""
    # setuptools is in the lock, so nothing is fetched to build with.
    run_first_that_works([[*uv, "--no-deps", "--no-build-isolation", "-e", str(ROOT)]])


def install_resolved(python: Path, uv: list[str], extra: str) -> None:
    """Resolve the ranges; without engines when no CPU torch exists for this Python."""
    # Where no wheel carries a redis-server, one is built from source: a C compiler and two minutes.
    always = "dev" if shutil.which("redis-server") else "dev,redis"
    if extra == "gpu":
        # pip's wheel folder is left out here: it may hold a CPU build of torch, which would win.
        run_first_that_works([[*uv, "--torch-backend", "auto", "-e", f"{ROOT}[gpu,{always}]"]])
        return
    cpu = [*uv, "--override", str(OVERRIDES), "--torch-backend", "cpu", "-e", f"{ROOT}[cpu,{always}]"]
    if extra == "cpu":
        if succeeds(cpu):
            return
        say("the CPU set did not resolve (torch from uv's own CPU source); Python 3.11 on x86_64 has the lock")
    say("installing everything but the engines: no generation and no embedding worker will start here")
    run_first_that_works([[*uv, "-e", f"{ROOT}[{always}]"], [*uv, "-e", f"{ROOT}[dev]"]])


def lock(python: Path) -> None:
    """Resolve the CPU and development sets into the lock; its present pins are kept where they still fit."""
    install_uv(python)
    command = [str(python), "-m", "uv", "pip", "compile", "--quiet", str(ROOT / "pyproject.toml")]
    command += ["--extra", "cpu", "--extra", "dev", "--override", str(OVERRIDES), "-o", str(LOCK)]
    command += ["--python-version", LOCK_PYTHON, "--python-platform", "x86_64-manylinux_2_28"]
    command += ["--no-emit-index-url", "--no-emit-find-links", "--custom-compile-command", "make lock"]
    folders = wheel_folders(python)
    source = [part for folder in folders for part in ("--find-links", folder)] or ["--torch-backend", "cpu"]
    run_first_that_works([[*command, *source]])
    say(f"wrote {LOCK.name}")


# --- where wheels lie


def wheel_folders(python: Path) -> list[str]:
    """Return what pip's own find-links setting names, from its environment variable and its files."""
    named = os.environ.get("PIP_FIND_LINKS", "").split()
    done = subprocess.run([str(python), "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        key, _, value = line.partition("=")
        if key.endswith(".find-links"):
            named += value.strip("'\"").replace("\\n", " ").split()
    return list(dict.fromkeys(named))


def find_torch_wheel(folders: list[str]) -> Path | None:
    """Return the wheel of the locked torch in one of the folders."""
    pinned = next(line for line in LOCK.read_text().splitlines() if line.startswith("torch=="))
    pattern = f"torch-{pinned.split()[0].partition('==')[2]}-cp{LOCK_PYTHON.replace('.', '')}-*.whl"
    for folder in folders:
        path = Path(folder[len("file://") :] if folder.startswith("file://") else folder)
        for wheel in path.glob(pattern):
            return wheel
    return None


# --- running commands


def succeeds(command: list[str]) -> bool:
    """Run a command with its output shown; return whether it ended well."""
    environment = {**os.environ, "UV_HTTP_TIMEOUT": os.environ.get("UV_HTTP_TIMEOUT", "180")}
    return subprocess.run(command, env=environment, check=False).returncode == 0


def run_first_that_works(commands: list[list[str]]) -> None:
    """Run the commands in turn until one ends well; when none does, end and say what was tried."""
    for command in commands:
        if succeeds(command):
            return
        say(f"did not work: {' '.join(command)}")
    raise SystemExit("bootstrap: nothing above worked, so .venv is not complete")


if __name__ == "__main__":
    sys.exit(main())
