"""`jarvis models`: the real command, with its real child processes, over catalogues of engines that need no weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ops import model_weights
from ops.model_weights import chosen, size_in_words
from tests.redis_server import free_port
from tests.unit.hub_stand_in import HubStandIn

ROOT = Path(__file__).parents[2]
FAKES = """\
[models.words]
kind = "generation"
engine = "fake"
max_model_len = 256

[models.vectors]
kind = "embedding"
engine = "fake"
"""
HUB = """\
[models.far]
kind = "generation"
engine = "vllm"
weights = "owner/far"
revision = "v1"
max_model_len = 256
"""
Jarvis = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def jarvis(tmp_path: Path) -> Jarvis:
    """Run `jarvis models …` over a catalogue of this text, where neither Redis nor a hub answers."""

    def run(catalogue: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "models.toml").write_text(catalogue)
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("JARVIS_", "HF_"))}
        nowhere = f"127.0.0.1:{free_port()}"
        environment = {
            **clean,
            "PYTHONPATH": str(ROOT),
            "JARVIS_CATALOGUE": str(tmp_path / "models.toml"),
            "JARVIS_REDIS_URL": f"redis://{nowhere}",
            "JARVIS_DATA_DIR": str(tmp_path),
            "HF_ENDPOINT": f"http://{nowhere}",
            "HF_HOME": str(tmp_path / "hub"),
        }
        command = [sys.executable, "-m", "ops.cli", "models", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment | variables, cwd=tmp_path, timeout=60, check=False
        )

    return run


def test_check_says_that_nothing_is_wrong(jarvis: Jarvis) -> None:
    done = jarvis(FAKES, "check")
    assert (done.returncode, done.stdout.rpartition(": ")[2]) == (0, "2 models, nothing wrong\n")


def test_check_explains_every_mistake_of_the_file_by_line_and_ends_with_1(jarvis: Jarvis) -> None:
    done = jarvis(FAKES.replace("max_model_len = 256", "max_model_len = 0\nslots = true"), "check")
    assert done.returncode == 1
    lines = [line.partition("models.toml:")[2] for line in done.stderr.splitlines()]
    assert lines == [
        "5: [models.words] slots is True; must be a whole number",
        "4: [models.words] max_model_len is 0; allowed: 1 or more",
    ]


def test_check_asks_the_engines_of_each_model(jarvis: Jarvis) -> None:
    missing = '[models.one]\nkind = "embedding"\nengine = "sentence-transformers"\nweights = "./gone"\n'
    done = jarvis(missing + missing.replace("one", "two"), "check", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"], len(found["problems"])) == (1, False, 2)
    assert "models.toml:5: weights of two: no model in" in found["problems"][1]
    only = jarvis(missing + missing.replace("one", "two"), "check", "two", "--json")
    assert len(json.loads(only.stdout)["problems"]) == 1


def test_an_alias_that_is_not_there_is_refused_with_those_that_are(jarvis: Jarvis) -> None:
    for command in ("check", "pull", "bench"):
        done = jarvis(FAKES, command, "nobody")
        assert done.returncode == 1
        assert "words" in done.stderr, command


def test_list_tells_what_lies_where_and_that_nothing_is_known_of_workers_without_redis(
    jarvis: Jarvis, tmp_path: Path
) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "awq"}}))
    (folder / "model.safetensors").write_bytes(b"x" * 2000)
    small = HUB.replace("far", "small").replace("owner/small", "./small").replace('revision = "v1"', 'preset = "cpu"')
    done = jarvis(FAKES + HUB + small, "list")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[1] == ["words", "generation", "fake", *["-"] * 5]
    assert rows[3] == ["far", "generation", "vllm", "owner/far@v1", "-", "-", "not", "fetched", "-"]
    assert rows[4] == ["small", "generation", "vllm", "./small", "cpu", "awq", "2.05", "kB", "-"]
    assert "Redis does not answer" in done.stderr
    assert done.returncode == 0


def test_pull_fetches_a_hubs_model_at_its_revision_once_and_list_finds_it(jarvis: Jarvis, tmp_path: Path) -> None:
    hub = HubStandIn()
    try:
        done = jarvis(HUB, "pull", "far", HF_ENDPOINT=hub.url)
    finally:
        hub.stop()
    assert done.returncode == 0, done.stderr
    folder, _, size = done.stdout.strip().rpartition(" (")
    assert size == "3.03 kB)"
    assert {file.name for file in Path(folder).iterdir()} == {"config.json", "model.safetensors"}
    assert "/api/models/owner/far/revision/v1" in hub.asked
    (row,) = json.loads(jarvis(HUB, "list", "--json").stdout)["data"]
    assert (row["path"], row["bytes"]) == (folder, 3032)


def test_pull_says_when_the_hub_has_no_such_revision(jarvis: Jarvis) -> None:
    hub = HubStandIn()
    try:
        done = jarvis(HUB.replace("v1", "v2"), "pull", "far", HF_ENDPOINT=hub.url)
    finally:
        hub.stop()
    assert done.returncode == 1
    (said,) = [line for line in done.stderr.splitlines() if "the hub refuses" in line]
    assert "models.toml:4: the hub refuses owner/far at v2: " in said
    assert "404" in said


def test_pull_names_the_model_that_no_hub_gives_and_its_line(jarvis: Jarvis) -> None:
    done = jarvis(HUB, "pull", "far")
    assert done.returncode == 1
    assert "models.toml:4: cannot fetch owner/far at v1: " in done.stderr
    assert "Traceback" not in done.stderr


def test_pull_has_nothing_to_do_for_weights_that_are_here(jarvis: Jarvis) -> None:
    assert "words has no weights" in jarvis(FAKES, "pull", "words").stderr


def test_bench_measures_each_model_and_says_on_what(jarvis: Jarvis) -> None:
    done = jarvis(FAKES, "bench", "--json")
    found = json.loads(done.stdout)
    words, vectors = found["data"]
    assert (words["alias"], words["at_once"]) == ("words", 16)
    assert words["tokens_s"] > 0
    assert words["memory_mib"] > 5
    assert (vectors["texts"], vectors["texts_s"] > 0) == (512, True)
    assert found["machine"]["cores"] >= 1
    assert "machine: " in done.stderr


def test_bench_refuses_a_kind_that_it_does_not_measure(jarvis: Jarvis) -> None:
    done = jarvis('[models.ear]\nkind = "transcription"\nengine = "fake"\n', "bench", "ear")
    assert done.returncode == 1
    assert "models.toml:1: ear is for transcription; measured are generation and embedding" in done.stderr


def test_of_a_hubs_files_only_the_formats_that_the_engine_reads_are_fetched() -> None:
    files = ["config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.onnx", "m.gguf", "tokenizer.json"]
    assert list(chosen(files, "vllm")) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert "onnx/model.onnx" in chosen(files, "onnx")
    assert "pytorch_model.bin" in chosen(["config.json", "pytorch_model.bin"], "vllm")


def test_sizes_are_said_in_powers_of_1000() -> None:
    assert [size_in_words(size) for size in (0, 999, 1000, 1_530_000)] == ["0 B", "999 B", "1 kB", "1.53 MB"]
    assert model_weights.size_in_words(2.5e15) == "2.5e+03 TB"
