"""Where a model's weights lie, what they take on disk, and how they get here from a hub."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.catalogue import Model
from common.errors import SettingsInvalid

#: The same weights again for other frameworks, and training state: not fetched where safetensors are there.
OTHER_FORMATS = (".bin", ".pt", ".pth", ".h5", ".msgpack", ".ot", ".onnx", ".onnx_data", ".tflite", ".gguf")
HUB_TIMEOUT_S = 10.0
UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, slots=True)
class Found:
    """What was found of a model's weights."""

    words: str  # for people: a size, or why there is none
    path: str | None = None
    size_bytes: int | None = None
    quantization: str | None = None  # what the checkpoint says of itself


def look_at(model: Model) -> Found:
    """Look for the weights on this machine; nothing is fetched."""
    if model.engine in ("fake", "openai"):
        return Found("")
    try:
        path = model.weights_path()
    except SettingsInvalid:
        return Found("missing")
    folder = Path(path) if model.local else cached(path, model.revision)
    if folder is None:
        return Found("not fetched")
    size = size_bytes(folder)
    return Found(size_in_words(size), str(folder), size, "gguf" if model.gguf else _quantization(folder))


def cached(hub_id: str, revision: str | None) -> Path | None:
    """The folder of a hub's model in the cache; None when it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def fetch(model: Model) -> tuple[Path, int]:
    """Fetch the weights from the hub, with progress on stderr; returns their folder and its bytes.

    Raises SettingsInvalid when no hub answers or it has no such model or revision.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]  # its client's own

    wanted = f"{model.weights}{f' at {model.revision}' if model.revision else ''}"
    try:
        about = HfApi().model_info(model.weights, revision=model.revision, timeout=HUB_TIMEOUT_S)
        files = chosen([file.rfilename for file in about.siblings or ()], model.engine)
        folder = snapshot_download(model.weights, revision=model.revision, allow_patterns=list(files))
    except HfHubHTTPError as error:
        raise SettingsInvalid(f"{model.place_of('weights')}: the hub refuses {wanted}: {_first_line(error)}") from None
    except (HTTPError, OSError) as error:  # nobody answers, HF_HUB_OFFLINE is set, the disk is full
        raise SettingsInvalid(f"{model.place_of('weights')}: cannot fetch {wanted}: {_first_line(error)}") from None
    return Path(folder), size_bytes(Path(folder))


def _first_line(error: Exception) -> str:
    # The hub's errors go on with links and advice.
    return (str(error).splitlines() or [type(error).__name__])[0]


def chosen(files: Iterable[str], engine: str) -> Iterable[str]:
    """Those of a repository's files that an engine reads."""
    listed = list(files)
    skipped = OTHER_FORMATS if any(name.endswith(".safetensors") for name in listed) else ()
    for name in listed:
        if not name.endswith(skipped) or (engine == "onnx" and name.endswith((".onnx", ".onnx_data"))):
            yield name


def size_bytes(path: Path) -> int:
    """Bytes of a file, or of all files below a folder (the hub's cache links to them)."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def size_in_words(size: float) -> str:
    """A size for people, in powers of 1000."""
    for unit in UNITS[:-1]:
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} {UNITS[-1]}"


def _quantization(folder: Path) -> str | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    method = (config.get("quantization_config") or {}).get("quant_method")
    return str(method) if method else None
