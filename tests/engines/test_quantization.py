"""Quantized checkpoints that this hardware runs are run; those that it cannot run are refused by name at the start."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.catalogue import Catalogue
from ops.bench.quantize import WRITERS, dequantized
from workers.engines import vllm_quantization
from workers.engines.checks import problems

ROOT = Path(__file__).parents[2]
Found = Callable[..., list[str]]


@pytest.fixture(scope="module")
def checkpoints(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model in each quantized layout, by name."""
    folder = tmp_path_factory.mktemp("quantized")
    return {name: write(tiny_folder, folder / name) for name, write in WRITERS.items()}


@pytest.fixture
def found(tmp_path: Path) -> Found:
    """What is wrong with an entry of these lines, without the file's folder."""

    def found(weights: Path | str, *lines: str) -> list[str]:
        file = tmp_path / "models.toml"
        entry = ["[models.m]", 'kind = "generation"', 'engine = "vllm"', f'weights = "{weights}"']
        file.write_text("\n".join([*entry, "max_model_len = 128", *lines]) + "\n")
        return [one.replace(f"{file}:", "") for one in problems(Catalogue.load(file).models["m"])]

    return found


def as_checkpoint(source: Path, folder: Path, **settings: object) -> Path:
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "config.json").unlink()
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return folder


def distance(one: list[float], other: list[float]) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def test_quantized_checkpoints_run_and_say_what_their_dequantized_weights_say(
    checkpoints: dict[str, Path], tiny_folder: Path
) -> None:
    plain = tiny_folder
    if not dequantized(plain).exists():
        dequantized(plain).symlink_to(plain)
    folders = [*map(str, checkpoints.values()), str(plain)]
    command = [sys.executable, "-m", "tests.engines.quantized_run", *folders]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"vllm"')]
    original = rows.pop()
    assert distance(original["vllm"], original["plain"]) < 0.06
    for name, row in zip(checkpoints, rows, strict=True):
        near, far = distance(row["vllm"], row["plain"]), distance(row["vllm"], original["plain"])
        assert near < 0.15, name
        assert near < far, name


@pytest.mark.parametrize("method", ["gguf", "bitsandbytes", "aqlm"])
def test_a_method_that_vllm_does_not_have_is_refused_with_those_it_has(
    found: Found, tiny_folder: Path, method: str
) -> None:
    (said,) = found(tiny_folder, f'quantization = "{method}"')
    assert said.startswith(f"6: [models.m] quantization {method} is not in the installed vLLM (")
    assert "it has: awq, " in said


def test_a_gguf_file_is_refused_by_name_where_vllm_cannot_read_it(found: Found, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    (said,) = found(tmp_path / "m.gguf")
    assert said.startswith("4: [models.m] quantization gguf is not in the installed vLLM")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "4: [models.m] quantization bitsandbytes is not in"),
        (
            {"quant_method": "fp8", "activation_scheme": "static"},
            "quantization fp8 does not run on cpu here; runs: awq",
        ),
        ({"quant_method": "gptq", "bits": 8, "group_size": 32}, "these weights have 8 bits; runs: 4 bits"),
        ({"quant_method": "mxfp4"}, "quantization mxfp4 does not run on cpu here; runs: awq"),
    ],
)
def test_a_checkpoint_that_this_hardware_cannot_run_is_refused_by_name(
    found: Found, tiny_folder: Path, tmp_path: Path, settings: dict[str, object], said: str
) -> None:
    (problem,) = found(as_checkpoint(tiny_folder, tmp_path / "weights", **settings))
    assert said in problem


@pytest.mark.parametrize(
    ("weights", "activations", "said"),
    [
        ({"num_bits": 8, "type": "int", "strategy": "channel"}, True, ""),
        ({"num_bits": 4, "type": "int", "strategy": "group"}, False, ""),
        ({"num_bits": 8, "type": "float", "strategy": "channel"}, True, ""),
        ({"num_bits": 8, "type": "float", "strategy": "tensor"}, True, "8-bit float weights and activations by tensor"),
        ({"num_bits": 4, "type": "float", "strategy": "tensor_group"}, True, "4-bit float weights and activations by"),
        ({"num_bits": 8, "type": "int", "strategy": "channel"}, False, "8-bit int weights by channel; runs: int8"),
    ],
)
def test_schemes_of_compressed_tensors_without_a_cpu_kernel_are_told_apart(
    tiny_folder: Path, tmp_path: Path, found: Found, weights: dict[str, object], activations: bool, said: str
) -> None:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": {"num_bits": 8} if activations else None}
    folder = as_checkpoint(tiny_folder, tmp_path / "w", quant_method="compressed-tensors", config_groups={"g": group})
    refusals = [one for one in found(folder) if "does not run on cpu" in one]
    assert bool(refusals) == bool(said)
    assert all(said in one for one in refusals)


def test_a_method_for_experts_is_refused_for_a_model_without_any(
    found: Found, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_quantization, "CPU", ("experts_int8",))  # as on a GPU, where it would run
    (said,) = found(tiny_folder, 'quantization = "experts_int8"')
    assert said.startswith("6: [models.m] quantization experts_int8 is for mixtures of experts only")


def test_a_dtype_that_the_quantization_does_not_take_is_refused(found: Found, checkpoints: dict[str, Path]) -> None:
    (said,) = found(checkpoints["awq"], 'dtype = "float32"')
    assert "torch.float32 is not supported for quantization method awq" in said


def test_a_quantization_other_than_the_checkpoints_is_refused(found: Found, checkpoints: dict[str, Path]) -> None:
    (said,) = found(checkpoints["gptq"], 'quantization = "awq"')
    assert said.startswith(
        "6: [models.m] vLLM refuses it: Quantization method specified in the model config (gptq) does"
    )


def test_every_option_is_checked_by_name_and_type_against_vllms_own(found: Found, tiny_folder: Path) -> None:
    lines = [
        "[models.m.options]",
        "max_num_sequences = 3",
        'enforce_eager = "yes"',
        "seed = 1.5",
        "async_scheduling = 1",
        'max_num_seqs = "8"',
    ]
    name, eager, seed, scheduling, sequences = found(tiny_folder, 'kv_cache_dtype = "fp7"', *lines)[1:]
    assert name.startswith("8: [models.m] vLLM ")
    assert name.endswith("has no option 'max_num_sequences'; did you mean max_num_seqs?")
    assert eager == "9: [models.m] enforce_eager is 'yes': must be true or false"
    assert seed.startswith("10: [models.m] seed is 1.5: Input should be a valid integer")
    assert scheduling == "11: [models.m] async_scheduling is 1: must be true or false"
    assert sequences == "12: [models.m] max_num_seqs is '8': must be a number"
    (cache,) = found(tiny_folder, 'kv_cache_dtype = "fp7"')
    assert cache.startswith("6: [models.m] kv_cache_dtype is 'fp7': Input should be 'auto'")


def test_what_vllm_itself_finds_contradictory_is_told_with_the_line_it_is_about(
    found: Found, tiny_folder: Path
) -> None:
    (said,) = found(tiny_folder, "options.max_num_seqs = -1")
    assert said.startswith("6: [models.m] vLLM refuses it: max_num_seqs: Input should be greater than or equal to 1")
    assert found(tiny_folder, "options.max_num_seqs = 8") == []


def test_missing_weights_are_a_problem_of_their_own(found: Found) -> None:
    (said,) = found("./nowhere")
    assert "weights of m: no model in" in said
