"""`python -m workers.models check|bench`: look at models of the catalogue through their engines, without a queue.

`jarvis models` runs this in a process of its own: engines are imported here, and only here. Answers are JSON, one
object a line, on standard output; whatever libraries print goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from common.catalogue import Catalogue, Model
from common.errors import JarvisError
from common.settings import load_settings

Say = Callable[[dict[str, Any]], None]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m workers.models", description=__doc__)
    made.add_argument("what", choices=("check", "bench"))
    made.add_argument("alias", nargs="*", help="models to look at (check: default all)")
    return made


def main(argv: list[str] | None = None) -> int:
    """Look at the models; returns 1 when something is wrong."""
    args = parser().parse_args(argv)
    say = _json_lines()
    try:
        models = chosen(Catalogue.load(load_settings().catalogue), args.alias)
        if args.what == "check":
            return check(models, say)
        from workers.measure import measure

        for model in models:
            say({"alias": model.alias, **measure(model)})
    except JarvisError as error:
        say({"error": str(error)})
        return 1
    return 0


def chosen(catalogue: Catalogue, aliases: list[str]) -> list[Model]:
    """The models with these aliases, all of them without any; raises UnknownModel."""
    known = catalogue.models
    return [known.get(alias) or catalogue.get("generation", alias) for alias in aliases] or list(known.values())


def check(models: list[Model], say: Say) -> int:
    """Say of each model what would stop its engine's start; 1 when anything would."""
    from workers.engines.checks import problems

    wrong = 0
    for model in models:
        found = problems(model)
        wrong = 1 if found else wrong
        say({"alias": model.alias, "problems": found})
    return wrong


def _json_lines() -> Say:
    # vLLM and torch print as they like, some of it from C: descriptor 1 becomes standard error, answers get a copy.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(document: dict[str, Any]) -> None:
        answers.write(json.dumps(document) + "\n")
        answers.flush()

    return say


if __name__ == "__main__":
    sys.exit(main())
