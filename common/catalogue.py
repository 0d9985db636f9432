"""The models that exist: one TOML file, read and checked whole at start.

Every mistake in the file is found here, with its line, before any job can meet it: a process either starts
with a catalogue in which every entry is well-formed, or does not start.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.catalogue_file import Reader
from common.errors import UnknownModel
from common.model import Model

__all__ = ["Catalogue", "Model"]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The models of one file, by alias."""

    path: Path
    models: dict[str, Model]

    @classmethod
    def load(cls, path: str | Path) -> Catalogue:
        """Read and check a catalogue file; raises CatalogueInvalid with everything that is wrong, by file and line."""
        return cls(Path(path), Reader(Path(path)).models())

    def get(self, kind: str, alias: str) -> Model:
        """The model of this kind with this alias, or with an adapter of it; raises UnknownModel listing them."""
        for model in self.of_kind(kind):
            if alias in model.aliases:
                return model
        raise UnknownModel(kind, alias, [name for model in self.of_kind(kind) for name in model.aliases])

    def of_kind(self, kind: str) -> list[Model]:
        """All models of one kind, in the file's order."""
        return [model for model in self.models.values() if model.kind == kind]

    def chain(self, model: Model) -> list[Model]:
        """The model and those that its jobs may fall back to, in order."""
        return [model, *(self.models[alias] for alias in model.fallback)]

    def check_weights(self) -> None:
        """Raise SettingsInvalid for the first model whose local weights are missing or do not fit."""
        for model in self.models.values():
            model.check_weights()
