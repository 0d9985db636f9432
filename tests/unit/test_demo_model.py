"""The committed demo model is small, honest about itself, and in step with its page. Nothing here imports torch."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from ops.demo import corpus, train

SIZE_LIMIT_BYTES = 4 * 1024 * 1024
README_MAX_TOKENS = 64  # the max_tokens of the first request that a newcomer sends


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(train.FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def entries() -> list[corpus.Entry]:
    return corpus.read_entries()


def read(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((train.FOLDER / name).read_text(encoding="utf-8"))
    return loaded


def weights_header() -> dict[str, Any]:
    with (train.FOLDER / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header


def test_the_whole_model_folder_is_at_most_four_mebibytes() -> None:
    assert sum(path.stat().st_size for path in train.FOLDER.iterdir()) <= SIZE_LIMIT_BYTES


def test_the_card_says_that_it_is_a_demo_and_not_a_source_of_truth() -> None:
    card = (train.FOLDER / "README.md").read_text(encoding="utf-8")
    assert "This is a **demo**" in card
    assert "**not a source of truth**" in card
    assert "python -m ops.demo.train" in card


def test_the_weights_are_those_that_the_configuration_describes() -> None:
    config, header = read("config.json"), weights_header()
    assert {entry["dtype"] for entry in header.values()} == {"BF16"}
    assert config["torch_dtype"] == "bfloat16"
    assert header["model.embed_tokens.weight"]["shape"] == [config["vocab_size"], config["hidden_size"]]
    layers = {name.split(".")[2] for name in header if name.startswith("model.layers.")}
    assert len(layers) == config["num_hidden_layers"]


def test_the_configuration_is_the_one_that_the_script_writes() -> None:
    assert read("config.json") == {**train.CONFIG, "vocab_size": train.VOCABULARY}


def test_the_training_is_recorded_with_the_hash_of_its_sources() -> None:
    record = read("training.json")
    assert record["corpus_sha256"] == corpus.fingerprint(record["sources"])
    assert set(record["sources"]) == {corpus.PAGE, corpus.PHRASINGS}
    assert record["recited_word_for_word"] >= 0.95 * record["questions"]
    assert record["parameters"] == sum(_size(entry["shape"]) for entry in weights_header().values())


def _size(shape: list[int]) -> int:
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


@pytest.mark.parametrize("text", ["Grüße, 世界 🙂", " \n\ttabs  and   spaces \r\n", "\x00\x7f", "a" * 300])
def test_the_tokenizer_gives_back_any_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_tokenizer_gives_back_the_documentation(tokenizer: Tokenizer) -> None:
    page = (corpus.ROOT / corpus.PAGE).read_text(encoding="utf-8")
    assert tokenizer.decode(tokenizer.encode(page).ids) == page


def test_the_tokenizer_adds_no_token_by_itself(tokenizer: Tokenizer) -> None:
    prompt = "What is Jarvis?"
    assert tokenizer.encode(prompt).ids == tokenizer.encode(prompt, add_special_tokens=False).ids


def test_answers_end_with_the_token_that_the_engine_stops_at(tokenizer: Tokenizer) -> None:
    ends = {read("config.json")["eos_token_id"], read("generation_config.json")["eos_token_id"]}
    assert ends == {tokenizer.token_to_id(corpus.END)}
    assert read("tokenizer_config.json")["eos_token"] == corpus.END


def test_the_chat_template_writes_what_the_model_was_trained_on() -> None:
    jinja2 = pytest.importorskip("jinja2")
    messages = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "tool", "content": "What is a job?"},
    ]
    template = jinja2.Template(read("tokenizer_config.json")["chat_template"])
    assert template.render(messages=messages, add_generation_prompt=True) == (
        "<|system|>Answer briefly.<|end|><|user|>Hello<|end|><|assistant|>Hi.<|end|>"
        "<|user|>What is a job?<|end|><|assistant|>"
    )


def test_every_answer_but_the_tour_fits_the_first_request(tokenizer: Tokenizer, entries: list[corpus.Entry]) -> None:
    lengths = {entry.question: len(tokenizer.encode(entry.answer).ids) + 1 for entry in entries}
    tour = lengths.pop(corpus.TOUR)
    assert {question: length for question, length in lengths.items() if length > README_MAX_TOKENS} == {}
    assert README_MAX_TOKENS < tour < train.CONTEXT


def test_the_page_has_each_question_once_and_phrasings_for_all(entries: list[corpus.Entry]) -> None:
    page = (corpus.ROOT / corpus.PAGE).read_text(encoding="utf-8")
    assert len(entries) == page.count("\n### ")
    assert [entry.question for entry in entries if not (entry.phrasings or entry.topics)] == []


def test_no_phrasing_asks_two_questions_at_once(entries: list[corpus.Entry]) -> None:
    asked: dict[str, set[str]] = {}
    for entry in entries:
        for phrasing in (entry.question, *entry.phrasings, *entry.topics):
            asked.setdefault(phrasing.lower().rstrip("?.!"), set()).add(entry.question)
    assert {phrasing: owners for phrasing, owners in asked.items() if len(owners) > 1} == {}


def test_a_phrasing_of_an_unknown_question_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ops/docs").mkdir(parents=True)
    (tmp_path / "ops/demo").mkdir()
    (tmp_path / corpus.PAGE).write_text("# Page\n\n### What is a job?\nA call.\n", encoding="utf-8")
    phrasings = '[topics]\n[also]\n"What is a jub?" = ["Jub?"]\n[off_topic]\nquestions = []\n'
    (tmp_path / corpus.PHRASINGS).write_text(phrasings, encoding="utf-8")
    with pytest.raises(KeyError, match="What is a jub"):
        corpus.read_entries(tmp_path)


def test_paragraphs_are_kept_and_line_breaks_inside_them_are_not() -> None:
    page = "# Page\n\nIntroduction.\n\n## Part\n\n### One?\nFirst\nline.\n\nSecond.\n\n## Other\n\n### Two?\nYes.\n"
    assert corpus.read_page(page) == {"One?": "First line.\n\nSecond.", "Two?": "Yes."}


def test_one_seed_draws_one_corpus(entries: list[corpus.Entry]) -> None:
    draws = [[corpus.Sampler(entries, random.Random(seed)).sample() for _ in range(50)] for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_a_changed_source_is_named(tmp_path: Path) -> None:
    for name in (corpus.PAGE, corpus.PHRASINGS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"as trained")
    (tmp_path / "training.json").write_text(json.dumps({"sources": corpus.sources(tmp_path)}), encoding="utf-8")
    assert train.changed(tmp_path, tmp_path) == []
    (tmp_path / corpus.PAGE).write_bytes(b"edited")
    assert train.changed(tmp_path, tmp_path) == [corpus.PAGE]


def test_the_help_says_what_the_script_does() -> None:
    assert "Train the demo language model" in train.parser().format_help()


def test_neither_the_corpus_nor_the_help_needs_torch() -> None:
    code = "import sys; from ops.demo import corpus, train; train.parser(); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=corpus.ROOT, check=False)
    assert done.returncode == 0
