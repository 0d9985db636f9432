"""Imports run one way, and nothing is ever pickled."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "common": {"common"},
    "producer": {"producer", "common"},
    "workers": {"workers", "common"},
    "scheduler": {"scheduler", "common"},
    "ops": {"ops", "common"},
}
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
FILES = [path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))]


def imported(source: str, package: str) -> Iterator[str]:
    """Yield the top-level name of every import, those inside functions and type-checking blocks too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import stays in its package: ours are one level deep at the top.
            yield package if node.level else (node.module or "").partition(".")[0]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nobody_imports_sideways(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    ours = {name for name in imported(path.read_text(), package) if name in ALLOWED or name == "tests"}
    assert ours <= ALLOWED[package], f"{name_of(path)} imports {ours - ALLOWED[package]}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_pickled(path: Path) -> None:
    found = UNSAFE & set(imported(path.read_text(), path.relative_to(ROOT).parts[0]))
    assert not found, f"{name_of(path)} imports {found}"


def test_a_sideways_import_inside_a_function_is_seen() -> None:
    source = "def late():\n    from workers.worker import Worker\n    import pickle as p\n"
    assert set(imported(source, "producer")) == {"workers", "pickle"}
