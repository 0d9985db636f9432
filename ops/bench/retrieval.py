"""A small retrieval task out of the documentation: each question of its page has one right answer among all of them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from ops.bench.machine import ROOT

PAGE = ROOT / "ops" / "docs" / "questions.md"
PAIR = re.compile(r"^### (.+)\n(.+)$", re.MULTILINE)


def pairs() -> tuple[list[str], list[str]]:
    """The questions, and the answer of each."""
    found = PAIR.findall(PAGE.read_text(encoding="utf-8"))
    return [question for question, _ in found], [answer for _, answer in found]


def ndcg(questions: Sequence[Sequence[float]], answers: Sequence[Sequence[float]], best: int = 10) -> float:
    """nDCG over the `best` answers by cosine; answer n alone is right for question n. 1: it is always first."""
    import numpy as np

    asked, said = (np.asarray(vectors, dtype=np.float64) for vectors in (questions, answers))
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    said /= np.linalg.norm(said, axis=1, keepdims=True)
    alike = asked @ said.T
    ranks = (alike > np.diag(alike)[:, None]).sum(axis=1)  # answers before the right one
    return sum(1 / math.log2(rank + 2) for rank in ranks.tolist() if rank < best) / len(ranks)
