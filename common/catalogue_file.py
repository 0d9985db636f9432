"""Reads the catalogue's TOML file into models, or says everything that is wrong in it, each with its line.

Here is checked what the file alone can tell: names, types, what contradicts what. Whether the installed engine
knows an option, and whether this machine can run it, the workers check at their start (workers/engines/checks.py).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from common.catalogue_keys import (
    COST,
    DEFAULTS,
    ENGINES,
    FIELDS,
    LENGTHS,
    OPTIONS,
    SLOTS,
    Key,
    Kind,
    Types,
    is_of,
    named,
)
from common.contradictions import contradictions
from common.cost import Cost
from common.embedding_presets import with_preset
from common.errors import CatalogueInvalid, shown
from common.hosted import broken_chains
from common.model import Model
from common.speculative import FIELDS as SPECULATIVE
from common.upstream import CONCURRENCY

ALIAS = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
#: Read by name; every other key of FIELDS is a field of Model as it stands.
SPECIAL = ("kind", "engine", "weights", "max_model_len", "slots", "defaults", "options", "fallback", "cost")

Where = tuple[str, ...]


class Reader:
    """One file: keeps the text so that a mistake can be shown by its line, and goes on after each mistake."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []
        try:
            self.text = path.read_text(encoding="utf-8")
            self.table = tomllib.loads(self.text)
        except OSError as error:
            raise CatalogueInvalid([f"catalogue {path} cannot be read: {error.strerror}"]) from None
        except UnicodeDecodeError as error:
            raise CatalogueInvalid([f"catalogue {path} is not UTF-8 (byte {error.start})"]) from None
        except tomllib.TOMLDecodeError as error:
            raise CatalogueInvalid([f"catalogue {path} is not TOML: {error}"]) from None

    def models(self) -> dict[str, Model]:
        """The models by alias; raises CatalogueInvalid."""
        for key in self.table:
            if key != "models":
                self.wrong((), key, f"unknown table {shown(key)}; allowed: models")
        entries = self.table.get("models")
        if not isinstance(entries, dict) or not entries:
            self.problems.append(f"{self.path}: no model: write one as [models.<alias>]")
            entries = {}
        found = {alias: self.model(alias, entry) for alias, entry in entries.items()}
        self.check_aliases(entries)
        if not self.problems:
            self.problems += broken_chains({alias: model for alias, model in found.items() if model is not None})
        if self.problems:
            raise CatalogueInvalid(self.problems)
        return {alias: model for alias, model in found.items() if model is not None}

    def model(self, alias: str, entry: Any) -> Model | None:
        """One entry; None when a mistake in it, which is noted, leaves no model."""
        where, before = ("models", alias), len(self.problems)
        if not ALIAS.match(alias):
            self.wrong(where, None, f"alias {shown(alias)}: at most 64 letters, digits and . _ -")
        if not isinstance(entry, dict):
            self.wrong(("models",), alias, f"{alias} must be a table")
            return None
        entry = with_preset(entry)
        self.check(where, entry, {name: key.types for name, key in FIELDS.items()})
        kind, engine = self.kind_and_engine(where, entry)
        if kind is None or engine is None:
            return None
        self.check_values(where, entry, engine)
        self.check((*where, "defaults"), entry.get("defaults", {}), DEFAULTS[kind])
        self.check((*where, "options"), entry.get("options", {}), OPTIONS[engine])
        self.check((*where, "speculative"), entry.get("speculative", {}), SPECULATIVE)
        self.check_adapters((*where, "adapters"), entry.get("adapters", {}))
        self.check((*where, "cost"), entry.get("cost", {}), COST)
        if len(self.problems) > before:  # of wrong types nothing more can be said
            self.required(where, entry, kind, engine)
            return None
        return self.whole(where, entry, kind, engine)

    def whole(self, where: Where, entry: dict[str, Any], kind: Kind, engine: str) -> Model | None:
        """An entry whose keys are right, each for itself."""
        if not self.required(where, entry, kind, engine):
            return None
        model = Model(
            alias=where[-1],
            kind=kind,
            engine=engine,
            weights=entry.get("weights", ""),
            max_model_len=entry.get("max_model_len", LENGTHS.get(kind, 512)),
            slots=entry.get("slots", SLOTS[kind]),
            defaults=entry.get("defaults", {}),
            options=entry.get("options", {}),
            fallback=tuple(entry.get("fallback", ())),
            cost=Cost(**entry["cost"]) if "cost" in entry else None,
            place=self.place(where, None),
            folder=self.path.absolute().parent,
            places=self.places(where, entry),
            **{key: value for key, value in entry.items() if key not in SPECIAL},
        )
        at_once = model.engine_options.get("max_num_seqs")
        if model.preset and "slots" not in entry and isinstance(at_once, int):
            model = replace(model, slots=at_once)  # a worker holds as many jobs as the preset has sequences at once
        if engine == "openai" and "slots" not in entry:
            model = replace(model, slots=max(1, model.options.get("concurrency", CONCURRENCY)))
        self.problems += contradictions(model)
        return model

    def kind_and_engine(self, where: Where, entry: dict[str, Any]) -> tuple[Kind | None, str | None]:
        """The two that decide what else is allowed; None for one that is wrong."""
        kind = entry.get("kind")
        if not isinstance(kind, str) or kind not in ENGINES:
            self.wrong(where, "kind", f"kind is {shown(kind)}; allowed: {', '.join(ENGINES)}")
            return None, None
        engine = entry.get("engine")
        if engine not in ENGINES[kind]:
            allowed = ", ".join(ENGINES[kind])
            self.wrong(where, "engine", f"engine is {shown(engine)}; allowed for {kind}: {allowed}")
            return cast(Kind, kind), None
        return cast(Kind, kind), str(engine)

    def required(self, where: Where, entry: dict[str, Any], kind: Kind, engine: str) -> bool:
        """Whether what must be there is there, and no number is below 1."""
        before = len(self.problems)
        if not entry.get("weights") and engine != "fake":
            self.wrong(where, "weights", "weights is missing: a folder, a .gguf file, a hub id or package:…")
        if kind == "generation" and "max_model_len" not in entry:
            self.wrong(where, "max_model_len", "max_model_len is missing (tokens of prompt and answer together)")
        for key in ("max_model_len", "slots", "min_slots"):
            value = entry.get(key, 1)
            if is_of(value, int) and value < 1:
                self.wrong(where, key, f"{key} is {value}; allowed: 1 or more")
        return len(self.problems) == before

    def check(self, where: Where, table: Any, allowed: Mapping[str, Types] | None) -> None:
        """Note keys that are not allowed and values of another type."""
        if allowed is None or not isinstance(table, dict):
            return
        for key, value in table.items():
            if key not in allowed:
                self.wrong(where, key, f"unknown key {shown(key)}; allowed: {', '.join(allowed)}")
            elif not is_of(value, allowed[key]):
                self.wrong(where, key, f"{key} is {shown(value)}; must be {named(allowed[key])}")

    def check_values(self, where: Where, entry: dict[str, Any], engine: str) -> None:
        """Note values that a key does not take, and keys that this engine would not read."""
        for key, value in entry.items():
            allowed = FIELDS.get(key, Key(object))
            if allowed.engines and engine not in allowed.engines:
                self.wrong(where, key, f"{key} is for engine {' or '.join(allowed.engines)}, not for {engine}")
            elif allowed.allowed and isinstance(value, str) and value not in allowed.allowed:
                self.wrong(where, key, f"{key} is {shown(value)}; allowed: {', '.join(allowed.allowed)}")

    def check_adapters(self, where: Where, table: Any) -> None:
        """Note adapters that are no alias with a folder."""
        for alias, folder in table.items() if isinstance(table, dict) else ():
            if not ALIAS.match(alias):
                self.wrong(where, alias, f"alias {shown(alias)}: at most 64 letters, digits and . _ -")
            if not isinstance(folder, str) or not folder:
                self.wrong(where, alias, f"{alias} is {shown(folder)}; must be a folder")

    def check_aliases(self, entries: dict[str, Any]) -> None:
        """Note adapters whose alias is taken: a job names a model or an adapter by its alias alone."""
        whose = dict.fromkeys(entries, "a model")
        for model, entry in entries.items():
            adapters = entry.get("adapters", {}) if isinstance(entry, dict) else {}
            for alias in adapters if isinstance(adapters, dict) else ():
                if alias in whose:
                    self.wrong(("models", model, "adapters"), alias, f"the alias {alias} is taken by {whose[alias]}")
                whose[alias] = f"an adapter of {model}"

    def wrong(self, where: Where, key: str | None, message: str) -> None:
        """Note a mistake."""
        table = ".".join(where)
        self.problems.append(f"{self.place(where, key)}: {f'[{table}] ' if table else ''}{message}")

    def place(self, where: Where, key: str | None) -> str:
        """file:line of a key, or of the table when it has no line of its own."""
        line = _line_of(self.text, where, key)
        return f"{self.path}:{line}" if line else str(self.path)

    def places(self, where: Where, entry: dict[str, Any]) -> dict[str, str]:
        """file:line of each key of an entry and of each key of its tables, for what is found wrong later."""
        found = {key: self.place(where, key) for key in entry}
        for table in ("options", "adapters", "speculative"):
            found |= {f"{table}.{key}": self.place((*where, table), key) for key in entry.get(table, {})}
        return found


def _line_of(text: str, where: Where, key: str | None) -> int | None:
    """The line that sets a key of a table, else the table's header: tomllib keeps no positions."""
    header = None
    current: Where = ()
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


def _split(dotted: str) -> Where:
    parts = re.findall(r'"([^"]*)"|\'([^\']*)\'|([^.\s"\']+)', dotted)
    return tuple(next((part for part in groups if part), "") for groups in parts)
