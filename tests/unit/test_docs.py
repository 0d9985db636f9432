"""What the pages say can be followed: their links lead somewhere, their TOML is read by the program that it is for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from common.catalogue import Catalogue
from scheduler.recurring import Recurring

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "ops" / "docs").glob("*.md"))]
SNIPPETS = [
    pytest.param(snippet, id=f"{page.name}-{number}")
    for page in PAGES
    for number, snippet in enumerate(re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL))
]
ENTRY = '[models.{0}]\nkind = "generation"\nengine = "vllm"\nweights = "./{0}"\nmax_model_len = 512\n'


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
    gone = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not gone


def test_the_index_names_every_page() -> None:
    index = (ROOT / "ops" / "docs" / "README.md").read_text()
    assert [page.name for page in PAGES if page.parent.name == "docs" and f"({page.name})" not in index] == [
        "README.md"
    ]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_every_toml_is_read(snippet: str, tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(snippet)
    if "[[job]]" in snippet:
        assert Recurring.load(file).jobs
        return
    snippet = snippet.replace("…", 'weights = "./chat"\nmax_model_len = 512')
    named = set(re.findall(r"^\[models\.(\w+)", snippet, re.MULTILINE))
    others = set(re.findall(r'"(\w+)"', "".join(re.findall(r"^fallback = .*$", snippet, re.MULTILINE))))
    missing = [ENTRY.format(alias) for alias in sorted(named | others) if f"[models.{alias}]" not in snippet]
    file.write_text("\n".join([*missing, snippet]))
    assert tomllib.loads(file.read_text())
    for folder in re.findall(r'"\./(\S+?)"', file.read_text()):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    assert named <= set(Catalogue.load(file).models)
