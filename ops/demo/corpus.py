"""What the demo model learns: the page of questions and answers, asked in many ways.

The page `ops/docs/questions.md` is the only source of answers; `phrasings.toml` has other ways to put its questions.
Every random choice comes from the generator that the caller passes in, so one seed gives one corpus. Nothing here
needs torch.
"""

from __future__ import annotations

import hashlib
import random
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = "ops/docs/questions.md"
PHRASINGS = "ops/demo/phrasings.toml"
TOUR = "Tell me everything"
OFF_TOPIC = "What do you know about other things?"

END, SYSTEM, USER, ASSISTANT = "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"

# fmt: off
ABOUT = (
    "Tell me about {}", "Tell me about {}.", "Explain {}", "Explain {} to me", "Describe {}", "{}", "{}?",
    "What about {}?", "What can you tell me about {}?", "What do you know about {}?", "I want to know about {}",
    "Can you explain {}?", "Give me an overview of {}", "Please explain {}", "Talk about {}", "More about {}",
    "Question about {}",
)
OPENINGS = (
    "Hey, ", "Hi, ", "Hello, ", "Hey Jarvis, ", "Please tell me: ", "Tell me, ", "Sorry, ", "So ", "OK, ", "And ",
    "Hi! ",
)
CLOSINGS = (
    " please", ", please", " Thanks!", "??", " Please be brief.", " Answer in one sentence.",
    " In short.", " in Jarvis", "!", " exactly",
)
FRAMES = (
    "Q: {}\nA:", "Question: {}\nAnswer:", "User: {}\nAssistant:", "### {}\n", "{}\n", "{} ", "{}\n\n", "Q: {}\nA: ",
)
SYSTEMS = (
    "You are a helpful assistant.", "You are Jarvis.", "Answer briefly.",
    "You answer questions about the documentation.",
)
# fmt: on
LETTERS = "abcdefghijklmnopqrstuvwxyz    0123456789=+-*/?!.,()"
FILLERS = frozenset("a an the is are do does i me my of to in what how can you it when if for please".split())


@dataclass(frozen=True)
class Entry:
    """One question of the page, its answer, and the other ways to ask it."""

    question: str
    answer: str
    phrasings: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """What the model is shown (`prompt`) and what it must write after it (`answer`)."""

    prompt: str
    answer: str

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def read_page(text: str) -> dict[str, str]:
    """Return the answers of a questions page by question: each `###` heading and the paragraphs under it."""
    sections = re.split(r"^### (.+)\n", re.sub(r"^## .*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE)
    answers = (re.sub(r"(?<!\n)\n(?!\n)", " ", answer.strip()) for answer in sections[2::2])
    return dict(zip(sections[1::2], answers, strict=True))


def read_entries(root: Path = ROOT) -> list[Entry]:
    """Return the entries of the page with their phrasings; a phrasing of an unknown question is a KeyError."""
    answers = read_page((root / PAGE).read_text(encoding="utf-8"))
    phrasings = tomllib.loads((root / PHRASINGS).read_text(encoding="utf-8"))
    also, topics = {**phrasings["also"], OFF_TOPIC: phrasings["off_topic"]["questions"]}, phrasings["topics"]
    if unknown := (also.keys() | topics.keys()) - answers.keys():
        raise KeyError(f"phrasings of questions that {PAGE} does not have: {sorted(unknown)}")
    return [Entry(q, a, tuple(also.get(q, ())), tuple(topics.get(q, ()))) for q, a in answers.items()]


def sources(root: Path = ROOT) -> dict[str, str]:
    """Return the SHA-256 of each file that the corpus is made of."""
    return {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in (PAGE, PHRASINGS)}


def fingerprint(digests: dict[str, str]) -> str:
    """Return one SHA-256 over the names and digests of all sources."""
    return hashlib.sha256("".join(f"{name} {digests[name]}\n" for name in sorted(digests)).encode()).hexdigest()


def _words(phrasings: Iterable[str]) -> list[str]:
    return [word for phrasing in phrasings for word in phrasing.split()]


def texts(entries: list[Entry]) -> Iterator[str]:
    """Yield every text that the tokenizer learns its pieces from, answers more often than questions."""
    for entry in entries:
        yield from (entry.answer, f" {entry.answer}", entry.question, *entry.phrasings, *entry.topics)


class Sampler:
    """Draws samples for ever: questions in all phrasings, as a plain prompt or a chat, and openings of answers."""

    def __init__(self, entries: list[Entry], rng: random.Random) -> None:
        self._short = [entry for entry in entries if entry.question != TOUR]
        self._tour = next(entry for entry in entries if entry.question == TOUR)
        self._weights = [
            24 if entry.question == OFF_TOPIC else 3 + len(entry.phrasings) ** 0.5 for entry in self._short
        ]
        self._foreign = [word for entry in entries if entry.question == OFF_TOPIC for word in _words(entry.phrasings)]
        self._rng = rng

    def sample(self) -> Sample:
        """Return the next short sample."""
        entry = self._pick()
        if self._rng.random() < 0.05:
            return self._continuation(entry.answer)
        return Sample(self._prompt(entry), entry.answer)

    def batches(self, size: int, count: int = 16) -> list[list[Sample]]:
        """Return some batches of samples about equally long, in random order, so that little of a batch is filling."""
        drawn = sorted(
            (self.sample() for _ in range(size * count)), key=lambda made: len(made.prompt) + len(made.answer)
        )
        made = [drawn[start : start + size] for start in range(0, len(drawn), size)]
        self._rng.shuffle(made)
        return made

    def tour(self) -> Sample:
        """Return the one long answer under some phrasing of its question."""
        return Sample(self._prompt(self._tour), self._tour.answer)

    def _pick(self) -> Entry:
        return self._rng.choices(self._short, self._weights)[0]

    def _continuation(self, answer: str) -> Sample:
        words = answer.split(" ")
        cut = self._rng.randint(4, 8)
        return Sample(" ".join(words[:cut]), " " + " ".join(words[cut:]))

    def _prompt(self, entry: Entry) -> str:
        question = self._disturbed(self._phrasing(entry))
        return self._chat(question) if self._rng.random() < 0.4 else self._plain(question)

    def _phrasing(self, entry: Entry) -> str:
        chance = self._rng.random()
        if entry.question == OFF_TOPIC and chance < 0.4:
            return self._nonsense()
        if entry.topics and chance < 0.35:
            return self._rng.choice(ABOUT).format(self._rng.choice(entry.topics))
        if chance < 0.55 or not entry.phrasings:
            return entry.question
        return self._rng.choice(entry.phrasings)

    def _nonsense(self) -> str:
        """Return words that ask nothing of the page, so that what is unknown is answered as unknown."""
        if self._rng.random() < 0.7:
            return " ".join(self._rng.choices(self._foreign, k=self._rng.randint(1, 7)))
        letters = self._rng.choices(LETTERS, k=self._rng.randint(1, 16))
        return "".join(letters).strip() or "x"

    def _plain(self, question: str) -> str:
        return self._rng.choice(FRAMES).format(question) if self._rng.random() < 0.25 else question

    def _chat(self, question: str) -> str:
        turns = ""
        if self._rng.random() < 0.25:
            turns += f"{SYSTEM}{self._rng.choice(SYSTEMS)}{END}"
        if self._rng.random() < 0.2:
            earlier = self._pick()
            turns += f"{USER}{self._phrasing(earlier)}{END}{ASSISTANT}{earlier.answer}{END}"
        return f"{turns}{USER}{question}{END}{ASSISTANT}"

    def _disturbed(self, question: str) -> str:
        """Change a question the way people do: no capitals, no question mark, a word or a letter missing."""
        chance = self._rng.random
        if chance() < 0.2:
            question = question.rstrip("?.!")
        if chance() < 0.2:
            question = question.lower()
        if chance() < 0.15:
            question = self._without_fillers(question)
        if chance() < 0.1:
            question = self._mistyped(question)
        if chance() < 0.12:
            question = self._rng.choice(OPENINGS) + question[:1].lower() + question[1:]
        if chance() < 0.12:
            question += self._rng.choice(CLOSINGS)
        return question

    def _without_fillers(self, question: str) -> str:
        words = question.split(" ")
        kept = [word for word in words if self._rng.random() < (0.5 if word.lower() in FILLERS else 0.9)]
        return " ".join(kept or words)

    def _mistyped(self, question: str) -> str:
        place = self._rng.randrange(len(question))
        return question[:place] + question[place + self._rng.choice((0, 1, 2)) :]
