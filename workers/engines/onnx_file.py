"""Where a model's ONNX graph is: beside its weights, or made of them once and kept in the data directory."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sys
import time
from pathlib import Path

from common.catalogue import Model
from common.errors import SettingsInvalid

log = logging.getLogger("jarvis.engines")

PLACES = ("model.onnx", "onnx/model.onnx")


async def onnx_file(model: Model, data_dir: Path) -> Path:
    """The graph's file; made at the first start, which takes about a minute. Raises SettingsInvalid if that fails."""
    folder = await asyncio.to_thread(weights_folder, model)
    for place in PLACES:
        if (folder / place).is_file():
            return folder / place
    kept = (data_dir / "onnx" / f"{model.alias}-{_digest(folder)}" / "model.onnx").absolute()
    if not kept.is_file():
        await _export(model, folder, kept)
    return kept


def weights_folder(model: Model) -> Path:
    """The weights' folder; those of a hub are fetched first, unless they are here already."""
    where = model.weights_path()
    if model.local:
        return Path(where)
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "*.onnx", "*.safetensors"]
    return Path(snapshot_download(where, revision=model.revision, allow_patterns=wanted))


async def _export(model: Model, folder: Path, kept: Path) -> None:
    started = time.monotonic()
    log.info("%s has no model.onnx: it is made of its torch weights, once, for %s", folder, kept)
    trusted = ["--trust-remote-code"] if model.options.get("trust_remote_code") else []
    command = [sys.executable, "-m", "workers.engines.onnx_export", str(folder), str(kept), *trusted]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:  # this worker was told to stop
            process.kill()
    last = said.decode(errors="replace").strip().rpartition("\n")[2]
    if process.returncode:
        reason = f"engine onnx: no graph could be made of {folder}: {last}"
        raise SettingsInvalid(f"{model.place}: {model.alias}: {reason}")
    log.info("made in %.0f s: %s", time.monotonic() - started, last)


def _digest(folder: Path) -> str:
    """Other weights in the same folder have another graph."""
    files = sorted(file for file in folder.rglob("*") if file.suffix in (".safetensors", ".bin", ".json"))
    about = [f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]
