"""The models that exist: one TOML file, read and checked whole at start.

Every mistake in the file is found here, with its line, before any job can meet it: a process either starts
with a catalogue in which every entry is well-formed, or does not start. What needs the weights themselves
(`weights_path`) is asked only by the workers, since the web process may run where no weights are.
"""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from common.errors import SettingsInvalid, UnknownModel, shown

Kind = Literal["generation", "embedding"]
ENGINES: dict[str, tuple[str, ...]] = {
    "generation": ("vllm", "fake"),
    "embedding": ("sentence-transformers", "fake"),
}
SLOTS = {"generation": 64, "embedding": 256}
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
ALIAS = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")

Types = type | tuple[type, ...]
NUMBER = (int, float)
NAMES = {
    str: "a string",
    int: "a whole number",
    bool: "true or false",
    dict: "a table",
    list: "a list",
}
FIELDS: dict[str, Types] = {
    "kind": str,
    "engine": str,
    "weights": str,
    "max_model_len": int,
    "slots": int,
    "defaults": dict,
    "options": dict,
}
# The job parameters that `defaults` may set. Jobs' own values are checked at the edge, not here.
DEFAULTS: dict[str, dict[str, Types]] = {
    "generation": {
        "max_tokens": int,
        "min_tokens": int,
        "ignore_eos": bool,
        "temperature": NUMBER,
        "top_p": NUMBER,
        "top_k": int,
        "min_p": NUMBER,
        "presence_penalty": NUMBER,
        "frequency_penalty": NUMBER,
        "repetition_penalty": NUMBER,
        "seed": int,
        "stop": (str, list),
    },
    "embedding": {"normalize": bool},
}
# vLLM's options are its own engine arguments; vLLM knows their names and the worker checks them at its start.
OPTIONS: dict[str, dict[str, Types] | None] = {
    "vllm": None,
    "sentence-transformers": {"device": str, "dtype": str, "batch_tokens": int, "threads": int},
    "fake": {"tokens": int, "delay_s": NUMBER, "words": list, "dimensions": int, "start_s": NUMBER},
}


@dataclass(frozen=True, slots=True)
class Model:
    """One entry of the catalogue."""

    alias: str
    kind: Kind
    engine: str
    weights: str
    max_model_len: int
    slots: int
    defaults: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    place: str = "catalogue"  # file:line of the entry, for messages
    folder: Path = Path()  # of the catalogue file, which relative weights start from

    @property
    def queue(self) -> str:
        """The queue whose jobs this model runs, e.g. `generation:demo`."""
        return f"{self.kind}:{self.alias}"

    @property
    def local(self) -> bool:
        """Whether the weights lie on this machine: only `owner/name` that is no folder is a hub's."""
        return self._folder().is_dir() or HUB_ID.match(self.weights) is None

    def weights_path(self) -> str:
        """The folder of the weights, or the hub's id; raises SettingsInvalid when a folder is missing."""
        if self.engine == "fake" or not self.local:
            return self.weights
        folder = self._package_folder() if self.weights.startswith("package:") else self._folder()
        if not (folder / "config.json").is_file():
            raise self._wrong(f"no model in {folder} (no config.json there)")
        self._check_length(folder)
        return str(folder)

    def _folder(self) -> Path:
        return (self.folder / self.weights).absolute()

    def _package_folder(self) -> Path:
        module, _, inside = self.weights.removeprefix("package:").partition("/")
        found = importlib.util.find_spec(module) if module.isidentifier() else None
        if found is None or not found.submodule_search_locations:
            raise self._wrong(f"the package {module} is not installed")
        return Path(next(iter(found.submodule_search_locations))) / inside

    def _check_length(self, folder: Path) -> None:
        known = json.loads((folder / "config.json").read_text()).get("max_position_embeddings")
        if isinstance(known, int) and self.max_model_len > known:
            raise self._wrong(f"the model in {folder} has {known} positions, max_model_len is {self.max_model_len}")

    def _wrong(self, message: str) -> SettingsInvalid:
        return SettingsInvalid(f"{self.place}: weights of {self.alias}: {message}")


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The models of one file, by alias."""

    path: Path
    models: dict[str, Model]

    @classmethod
    def load(cls, path: str | Path) -> Catalogue:
        """Read and check a catalogue file; raises SettingsInvalid naming file, line and what is wrong."""
        return _Reader(Path(path)).catalogue()

    def get(self, kind: str, alias: str) -> Model:
        """The model of this kind and alias; raises UnknownModel listing those that exist."""
        model = self.models.get(alias)
        if model is None or model.kind != kind:
            raise UnknownModel(kind, alias, [known.alias for known in self.of_kind(kind)])
        return model

    def of_kind(self, kind: str) -> list[Model]:
        """All models of one kind, in the file's order."""
        return [model for model in self.models.values() if model.kind == kind]

    def check_weights(self) -> None:
        """Raise SettingsInvalid for the first model whose local weights are missing or do not fit."""
        for model in self.models.values():
            model.weights_path()


class _Reader:
    """Turns one file into a Catalogue, keeping the text so that a mistake can be shown by its line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.text = path.read_text(encoding="utf-8")
            self.table = tomllib.loads(self.text)
        except OSError as error:
            raise SettingsInvalid(f"catalogue {path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise SettingsInvalid(f"catalogue {path} is not UTF-8 (byte {error.start})") from None
        except tomllib.TOMLDecodeError as error:
            raise SettingsInvalid(f"catalogue {path} is not TOML: {error}") from None

    def catalogue(self) -> Catalogue:
        for key in self.table:
            if key != "models":
                raise self.wrong((), key, f"unknown table {shown(key)}; allowed: models")
        models = self.table.get("models")
        if not isinstance(models, dict) or not models:
            raise SettingsInvalid(f"{self.path}: no model: write one as [models.<alias>]")
        return Catalogue(self.path, {alias: self.model(alias, entry) for alias, entry in models.items()})

    def model(self, alias: str, entry: Any) -> Model:
        where = ("models", alias)
        if not ALIAS.match(alias):
            raise self.wrong(where, None, f"alias {shown(alias)}: at most 64 letters, digits and . _ -")
        if not isinstance(entry, dict):
            raise self.wrong(("models",), alias, f"{alias} must be a table")
        self.check(where, entry, FIELDS)
        kind, engine = self.kind_and_engine(where, entry)
        self.check((*where, "defaults"), entry.get("defaults", {}), DEFAULTS[kind])
        self.check((*where, "options"), entry.get("options", {}), OPTIONS[engine])
        return Model(
            alias=alias,
            kind=kind,
            engine=engine,
            weights=self.weights(where, entry, engine),
            max_model_len=self.positive(where, entry, "max_model_len", None if kind == "generation" else 512),
            slots=self.positive(where, entry, "slots", SLOTS[kind]),
            defaults=entry.get("defaults", {}),
            options=entry.get("options", {}),
            place=self.place(where, None),
            folder=self.path.absolute().parent,
        )

    def kind_and_engine(self, where: tuple[str, ...], entry: dict[str, Any]) -> tuple[Kind, str]:
        kind = entry.get("kind")
        if kind not in ENGINES:
            raise self.wrong(where, "kind", f"kind is {shown(kind)}; allowed: {', '.join(ENGINES)}")
        engine = entry.get("engine")
        if engine not in ENGINES[kind]:
            allowed = ", ".join(ENGINES[kind])
            raise self.wrong(where, "engine", f"engine is {shown(engine)}; allowed for {kind}: {allowed}")
        return cast(Kind, kind), str(engine)

    def weights(self, where: tuple[str, ...], entry: dict[str, Any], engine: str) -> str:
        weights = entry.get("weights", "")
        if not weights and engine != "fake":
            raise self.wrong(where, "weights", "weights is missing: a folder, a hub id or package:…")
        return str(weights)

    def positive(self, where: tuple[str, ...], entry: dict[str, Any], key: str, default: int | None) -> int:
        value = entry.get(key, default)
        if value is None:
            raise self.wrong(where, key, f"{key} is missing (tokens of prompt and answer together)")
        if value < 1:
            raise self.wrong(where, key, f"{key} is {value}; allowed: 1 or more")
        return int(value)

    def check(self, where: tuple[str, ...], table: dict[str, Any], allowed: dict[str, Types] | None) -> None:
        if allowed is None:
            return
        for key, value in table.items():
            if key not in allowed:
                raise self.wrong(where, key, f"unknown key {shown(key)}; allowed: {', '.join(allowed)}")
            if not _is(value, allowed[key]):
                raise self.wrong(where, key, f"{key} is {shown(value)}; must be {_named(allowed[key])}")

    def wrong(self, where: tuple[str, ...], key: str | None, message: str) -> SettingsInvalid:
        table = ".".join(where)
        return SettingsInvalid(f"{self.place(where, key)}: {f'[{table}] ' if table else ''}{message}")

    def place(self, where: tuple[str, ...], key: str | None) -> str:
        line = _line_of(self.text, where, key)
        return f"{self.path}:{line}" if line else str(self.path)


def _is(value: Any, types: Types) -> bool:
    wanted = types if isinstance(types, tuple) else (types,)
    # bool is an int to Python, not to somebody who writes `slots = true`.
    return isinstance(value, wanted) and (bool in wanted or not isinstance(value, bool))


def _named(types: Types) -> str:
    if types == NUMBER:
        return "a number"
    return " or ".join(NAMES[one] for one in (types if isinstance(types, tuple) else (types,)))


def _line_of(text: str, where: tuple[str, ...], key: str | None) -> int | None:
    """The line that sets a key of a table, else the table's header: tomllib keeps no positions."""
    header = None
    current: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if opened := re.match(r"\s*\[([^\[\]]+)\]\s*(#.*)?$", line):
            current = _split(opened[1])
            if key is not None and current[: len(where) + 1] == (*where, key):
                return number
            header = header or (number if current == where else None)
        elif key is not None and (current + _split(line.partition("=")[0]))[: len(where) + 1] == (
            *where,
            key,
        ):
            return number
    return header


def _split(dotted: str) -> tuple[str, ...]:
    parts = re.findall(r'"([^"]*)"|\'([^\']*)\'|([^.\s"\']+)', dotted)
    return tuple(next((part for part in groups if part), "") for groups in parts)
