"""The API key that this machine's own commands use: `JARVIS_API_KEY`, or the one that `make run` made and kept."""

from __future__ import annotations

import os
from pathlib import Path

NAME = "api-key"


def kept_in(data_dir: Path) -> Path:
    """The file that the first key of a machine is kept in, readable by its owner alone."""
    return data_dir / NAME


def read(file: Path) -> str | None:
    """The key in a file, None when there is none that can be read."""
    try:
        return file.read_text("ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def keep(file: Path, text: str) -> None:
    """Write a key where only this user can read it; whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f"{file.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(text + "\n")
        opened.flush()
        os.fsync(opened.fileno())
    beside.replace(file)


def for_server(loopback: bool) -> str | None:
    """The key to send. The kept one is this machine's: it is sent to no other."""
    if given := os.environ.get("JARVIS_API_KEY"):
        return given
    return read(kept_in(Path(os.environ.get("JARVIS_DATA_DIR") or ".jarvis"))) if loopback else None
