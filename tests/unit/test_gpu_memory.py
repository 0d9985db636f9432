"""What a model needs of a GPU before it is loaded, and what to turn when memory ran out: files of the right sizes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import SettingsInvalid
from common.model import Model
from common.settings import Settings
from workers.devices import GIB
from workers.engines.checks import problems
from workers.engines.memory import Need, advice, need
from workers.placement import place

MIB = 1024**2
LLAMA_8B = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_size": 4096,
    "torch_dtype": "bfloat16",
    "max_position_embeddings": 131072,
}
CACHE_8B = 128 * 1024  # bytes a token: 2 x 32 layers x 8 heads x 128 numbers x 2 bytes


def weights(folder: Path, sizes: dict[str, int], **config: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**LLAMA_8B, **config}))
    for name, size in sizes.items():
        with (folder / name).open("wb") as file:
            file.truncate(size)  # sparse: takes no space


def model(folder: Path, length: int = 8192, engine: str = "vllm", **values: Any) -> Model:
    return Model("m", "generation", engine, str(folder), length, 8, place="models.toml:7", **values)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    weights(tmp_path / "w", {"a.safetensors": 10 * GIB, "b.safetensors": 6 * GIB, "old.bin": 16 * GIB})
    return tmp_path / "w"


def test_the_need_is_the_weights_files_and_the_cache_of_one_job(folder: Path) -> None:
    assert need(model(folder)) == Need(16 * GIB, 8192 * CACHE_8B)
    assert need(model(folder, kv_cache_dtype="fp8")) == Need(16 * GIB, 8192 * CACHE_8B // 2)
    assert need(model(folder, tensor_parallel=2, pipeline_parallel=2)) == Need(4 * GIB, 8192 * CACHE_8B // 4)
    assert need(model(folder, options={"kv_cache_memory_bytes": 3 * GIB})) == Need(16 * GIB, 3 * GIB)


@pytest.mark.parametrize(
    ("config", "values", "share"),
    [
        ({"torch_dtype": "float32"}, {}, 0.5),  # vLLM loads it as 16 bits
        ({"torch_dtype": "float32"}, {"dtype": "float32"}, 1),
        ({}, {"dtype": "float32"}, 2),
        ({}, {"quantization": "bitsandbytes"}, 0.25),  # at the least
        ({"quantization_config": {}, "torch_dtype": "float32"}, {"quantization": "awq"}, 1),  # the file is quantized
    ],
)
def test_weights_count_as_they_will_be_loaded(
    folder: Path, config: dict[str, Any], values: dict[str, Any], share: float
) -> None:
    weights(folder, {}, **config)
    least = need(model(folder, **values))
    assert least is not None
    assert least.weights == 16 * GIB * share


@pytest.mark.parametrize(
    ("config", "tokens_of_layers"),
    [
        ({"sliding_window": 1024}, 32 * 1024),
        ({"sliding_window": 1024, "layer_types": ["sliding_attention", "full_attention"]}, 1024 + 8192),
        ({"layer_types": ["linear_attention"] * 3 + ["full_attention"]}, 8192),
    ],
)
def test_layers_with_a_window_or_without_a_cache_need_less(
    folder: Path, config: dict[str, Any], tokens_of_layers: int
) -> None:
    weights(folder, {}, **config)
    least = need(model(folder))
    assert least is not None
    assert least.kv_cache == tokens_of_layers * CACHE_8B // 32


def test_an_index_says_which_files_are_the_model(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "a.safetensors"}}))
    least = need(model(folder))
    assert least is not None
    assert least.weights == 10 * GIB


def test_a_hubs_model_is_not_guessed_at() -> None:
    assert need(Model("m", "generation", "vllm", "lab/model", 8192, 8)) is None


def refusal(asked: Model, cards: str, folder: Path) -> str:
    with pytest.raises(SettingsInvalid) as caught:
        asyncio.run(place(asked, Settings(devices=cards, device_lock_dir=folder)))
    return str(caught.value)


def test_a_model_that_cannot_fit_is_refused_before_it_waits_or_loads_with_numbers_and_knobs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    message = refusal(model(folder, gpu_share=0.5), "0:24GiB,1:24GiB", tmp_path / "locks")
    assert message == (
        "models.toml:7: m does not fit: it needs 17.0 GiB, weights 16.0 GiB and KV cache 1.0 GiB (max_model_len 8192); "
        "11.0 GiB is what gpu_memory_utilization 0.46 (gpu_share 0.5) gives it of the 24.0 GiB of GPU 0 (simulated). "
        "Lower max_model_len, raise gpu_share (or options.gpu_memory_utilization), set kv_cache_dtype to fp8, take "
        "quantized weights (quantization), or spread it over more GPUs (tensor_parallel)"
    )
    assert not list((tmp_path / "locks").glob("*.hold"))
    assert "on each of 2 GPUs" in refusal(model(folder, tensor_parallel=2), "0:8GiB,1:8GiB", tmp_path / "locks")
    embedder = model(folder, engine="sentence-transformers")
    assert "gpu_share 0.2 gives it" in refusal(embedder, "0:24GiB", tmp_path / "locks")


def test_models_check_tells_it_too_unless_a_card_of_the_node_is_large_enough(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = model(folder, engine="sentence-transformers", gpu_share=1)
    monkeypatch.setenv("JARVIS_DEVICES", "0:8GiB,1:12GiB")
    (told,) = problems(embedder)
    assert "needs 16.0 GiB" in told
    assert "GPU 1" in told
    monkeypatch.setenv("JARVIS_DEVICES", "0:8GiB,1:24GiB")
    assert problems(embedder) == []


async def test_the_card_that_is_large_enough_is_taken(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cards = Settings(devices="0:12GiB,1:24GiB,2:24GiB", device_lock_dir=tmp_path / "locks")
    placement = await place(model(folder), cards)
    assert placement.device == "GPU 1 (simulated)"
    placement.leave()


@pytest.mark.parametrize(
    ("told", "knob"),
    [
        ("ValueError: No available memory for the cache blocks. Try", "options.max_num_batched_tokens"),
        ("(2.0 GiB KV cache is needed, which is larger than the available", "lower max_model_len"),
        ("Free memory on device cuda:0 (1/24 GiB) on startup is less than desired GPU memory utilization", "--device"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", "options.max_num_seqs"),
    ],
)
def test_what_engines_say_of_memory_names_the_key_to_turn(folder: Path, told: str, knob: str) -> None:
    assert knob in str(advice(told, model(folder)))
    assert advice("ValueError: something else", model(folder)) is None


def test_every_engine_has_its_own_knobs(folder: Path) -> None:
    assert "options.batch_tokens" in str(advice("CUDA out of memory", model(folder, engine="sentence-transformers")))
    assert "slots" in str(advice("CUDA failed with error out of memory", model(folder, engine="faster-whisper")))
