"""What the pages say can be followed: links, settings, modules and commands are there, TOML is read as it stands."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from common.catalogue import Catalogue
from common.settings import Settings
from ops.cli import app
from scheduler.recurring import Recurring

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "ops" / "docs").glob("*.md"))]
SNIPPETS = [
    pytest.param(snippet, id=f"{page.name}-{number}")
    for page in PAGES
    for number, snippet in enumerate(re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL))
]
#: Variables that are no settings of a process.
VARIABLES = {"JARVIS_API_KEY", "JARVIS_URL", "JARVIS_VENV", "JARVIS_OPENAI_SCHEMA", "JARVIS_GPUS"}
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_heading_that_is_linked_to_is_there(page: Path) -> None:
    for link, heading in re.findall(r"\]\(([^)#:]*)#([^)]*)\)", page.read_text()):
        text = (page.parent / link if link else page).read_text()
        headings = [
            re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)$", text, re.M)
        ]
        assert heading in headings, f"{link}#{heading}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_and_module_that_is_named_is_there(page: Path) -> None:
    text = page.read_text()
    settings = {f"JARVIS_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"JARVIS_[A-Z_]*[A-Z]", text)) - settings <= VARIABLES
    for module in re.findall(r"python -m ([\w.]+\w)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_has_options_that_the_command_takes(page: Path) -> None:
    for line in re.findall(r"(?:^|[`(]|\n)jarvis ([a-z][^\n`|#]*)", page.read_text()):
        words = line.split()
        command: Any = typer.main.get_command(app)
        while words and words[0] in getattr(command, "commands", ()):
            command = command.commands[words.pop(0)]
        options = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        asked = {word.split("=")[0].strip("`.,;:)") for word in words if word.startswith("--")}
        assert asked <= options or command.name in ("bench", "up"), f"jarvis {line}"


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
