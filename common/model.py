"""One model of the catalogue: what its entry says, where its weights lie, what its engine is given.

What needs the weights themselves is asked only by the workers, since the web process may run where none are.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common import gpus
from common.adapters import Adapter
from common.catalogue_keys import ENGINE_KEYS, FIELDS, Kind
from common.cost import Cost
from common.errors import SettingsInvalid
from common.presets import PRESETS
from common.speculative import check_vocabulary
from common.upstream import Upstream

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
GGUF = ".gguf"
GGUF_MAGIC = b"GGUF"


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
    folder: Path = Path()  # of the catalogue file, which relative paths start from
    preset: str | None = None
    revision: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    kv_cache_dtype: str | None = None
    tokenizer: str | None = None
    hf_config_path: str | None = None
    gpu_share: float | None = None  # of each GPU that it needs; 0: it needs none; not said: the engine's default
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    min_slots: int | None = None
    adapters: dict[str, str] = field(default_factory=dict)  # folder by alias
    speculative: dict[str, Any] | None = None
    prompts: dict[str, Any] = field(default_factory=dict)  # text before a text, by `input_type`
    default_prompt: str | None = None
    dimensions: list[int] = field(default_factory=list)  # sizes that the vectors may be cut to
    fallback: tuple[str, ...] = ()  # aliases whose workers may run this one's jobs, in this order
    fallback_after_s: float = 30.0  # when the jobs of a live queue have waited so long, for each place in the chain
    cost: Cost | None = None
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    vision: bool = False
    #: file:line of each key, by its name; of what stands in a table by `<table>.<name>`.
    places: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def queue(self) -> str:
        """The queue whose jobs this model runs, e.g. `generation:demo`."""
        return f"{self.kind}:{self.alias}"

    @property
    def aliases(self) -> list[str]:
        """What jobs may ask for: the model, and each of its adapters."""
        return [self.alias, *self.adapters]

    @property
    def gguf(self) -> bool:
        """Whether the weights are one GGUF file."""
        return self.weights.endswith(GGUF)

    @property
    def local(self) -> bool:
        """Whether the weights lie on this machine: only `owner/name` that is no folder is a hub's."""
        return self.gguf or self._folder().is_dir() or HUB_ID.match(self.weights) is None

    @property
    def engine_options(self) -> dict[str, Any]:
        """The engine's arguments: those of the preset, over them the entry's own keys, over them `options`."""
        own = {name: self._near(name) for name in ENGINE_KEYS if getattr(self, name) is not None}
        preset = PRESETS.get(self.preset or "", {})
        merged = {**preset, **own}
        if "kv_cache_memory_bytes" in self.options:  # the exact size takes the place of the preset's share
            merged.pop("gpu_memory_utilization", None)
        return {**merged, **self.options}

    @property
    def share(self) -> float:
        """The share of each of its GPUs that a worker holds; 0 when it runs without any."""
        return gpus.default_share(self.engine, self.preset, self.options) if self.gpu_share is None else self.gpu_share

    @property
    def gpu_count(self) -> int:
        """How many GPUs hold the model together, where there are any."""
        return self.tensor_parallel * self.pipeline_parallel

    def spread(self, **sizes: int | None) -> Model:
        """The same model with other `tensor_parallel` or `pipeline_parallel`; raises SettingsInvalid if it cannot."""
        given: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
        for name, size in given.items():
            engines = FIELDS[name].engines
            if size < 1 or self.engine not in engines:
                allowed = f"1 or more, for engine {' or '.join(engines)}"
                raise SettingsInvalid(f"{name} is {size} for {self.alias} (engine {self.engine}); allowed: {allowed}")
        return replace(self, **given)

    @property
    def least_slots(self) -> int:
        """Jobs that a worker takes even when its engine is short of memory."""
        return self.min_slots or max(1, self.slots // 8)

    def adapter(self, alias: str) -> Adapter:
        """The adapter with this alias."""
        folder = (self.folder / self.adapters[alias]).absolute()
        return Adapter(alias, folder, self.place_of(f"adapters.{alias}"))

    def speculative_config(self) -> dict[str, Any] | None:
        """What vLLM is asked for; raises SettingsInvalid when a draft model is missing or has other tokens."""
        if self.speculative is None or "model" not in self.speculative:
            return self.speculative
        place = self.place_of("speculative.model")
        # A draft may know fewer positions than the model: vLLM does not ask it beyond them.
        draft = replace(self, weights=self.speculative["model"], max_model_len=1, place=place).weights_path()
        check_vocabulary(place, self.weights_path(), draft)
        return self.speculative | {"model": draft}

    def check_weights(self) -> None:
        """Raise SettingsInvalid when weights, adapters or a draft model are missing or do not fit together."""
        self.weights_path()
        if self.engine == "fake":
            return
        self.speculative_config()
        for alias in self.adapters:
            self.adapter(alias).rank(self.options.get("max_lora_rank"))

    def place_of(self, key: str) -> str:
        """file:line of a key (`dtype`) or an option (`options.dtype`), else of the entry."""
        return self.places.get(key) or self.places.get(f"options.{key}") or self.place

    def weights_path(self) -> str:
        """The folder or file of the weights, or the hub's id; raises SettingsInvalid when they are missing."""
        if self.engine in ("fake", "openai") or not self.local:
            return self.weights
        if self.gguf:
            return self._gguf_file()
        folder = self._package_folder() if self.weights.startswith("package:") else self._folder()
        if not (folder / "config.json").is_file():
            raise self._wrong(f"no model in {folder} (no config.json there)")
        self._check_length(folder)
        return str(folder)

    def tokenizer_path(self) -> str:
        """The tokenizer's folder or hub id; raises SettingsInvalid when it is the missing weights' own."""
        return self._near("tokenizer") if self.tokenizer is not None else self.weights_path()

    def unknown_params(self, names: Iterable[str]) -> list[str]:
        """Those parameters of a job that this model's upstream does not know; a local engine knows all."""
        if self.engine != "openai" or self.kind != "generation":
            return []
        return Upstream.of(self.options).unknown(names)

    def _near(self, name: str) -> str:
        # A tokenizer or configuration in a folder is found from the catalogue's place, as weights are.
        value = str(getattr(self, name))
        near = (self.folder / value).absolute()
        return str(near) if name in ("tokenizer", "hf_config_path") and near.exists() else value

    def _folder(self) -> Path:
        return (self.folder / self.weights).absolute()

    def _gguf_file(self) -> str:
        path = self._folder()
        try:
            with path.open("rb") as file:
                magic = file.read(len(GGUF_MAGIC))
        except OSError as error:
            raise self._wrong(f"{path} cannot be read: {error.strerror}") from None
        if magic != GGUF_MAGIC:
            raise self._wrong(f"{path} is no GGUF file (it begins with {magic!r})")
        return str(path)

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
