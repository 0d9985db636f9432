"""Catalogues out of a test's own text."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.catalogue import Catalogue
from common.errors import SettingsInvalid


def load(folder: Path, text: str) -> Catalogue:
    """Write a catalogue into a folder and read it."""
    path = folder / "models.toml"
    path.write_text(text)
    return Catalogue.load(path)


def refusal(folder: Path, text: str) -> str:
    """What is said of a catalogue that is wrong, without the folder's name."""
    with pytest.raises(SettingsInvalid) as caught:
        load(folder, text)
    return str(caught.value).replace(str(folder), "")
