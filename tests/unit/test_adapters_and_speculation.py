from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.catalogue import Model
from common.errors import SettingsInvalid, UnknownModel
from tests.unit.catalogues import load, refusal
from workers.engines.vllm_adapters import lora_arguments

BASE = """\
[models.base]
kind = "generation"
engine = "vllm"
weights = "./base"
max_model_len = 64
"""
VECTORS = """
[models.vectors]
kind = "embedding"
engine = "sentence-transformers"
weights = "./vectors"
"""
ADAPTERS = '[models.base.adapters]\nsql = "./lora/sql"\ntone = "./lora/tone"\n'
DRAFT = '[models.base.speculative]\nmethod = "draft_model"\nmodel = "./draft"\nnum_speculative_tokens = 3\n'


def weights(folder: Path, positions: int = 64, vocabulary: int = 100) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": positions, "vocab_size": vocabulary}))


def lora(folder: Path, **config: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, **config}))


def base(folder: Path, text: str) -> Model:
    return load(folder, text).models["base"]


def refused(model: Model, folder: Path) -> str:
    with pytest.raises(SettingsInvalid) as caught:
        model.check_weights()
    return str(caught.value).replace(str(folder), "")


def test_an_adapters_alias_leads_to_the_model_that_runs_it(tmp_path: Path) -> None:
    catalogue = load(tmp_path, BASE + ADAPTERS + VECTORS)
    assert catalogue.get("generation", "sql") is catalogue.get("generation", "base")
    with pytest.raises(UnknownModel, match="base, sql, tone"):
        catalogue.get("generation", "poet")
    with pytest.raises(UnknownModel):
        catalogue.get("embedding", "sql")


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ('base = "./x"\n', "7: [models.base.adapters] the alias base is taken by a model"),
        ('vectors = "./x"\n', "7: [models.base.adapters] the alias vectors is taken by a model"),
        ('"no good" = "./x"\n', "7: [models.base.adapters] alias 'no good': at most 64 letters, digits and . _ -"),
        ("sql = 7\n", "7: [models.base.adapters] sql is 7; must be a folder"),
        (
            'sql = "./x"\n[models.other]\nkind = "generation"\nengine = "vllm"\nweights = "x/y"\n'
            'max_model_len = 9\nadapters.sql = "./y"\n',
            "13: [models.other.adapters] the alias sql is taken by an adapter of base",
        ),
        (
            'sql = "./x"\n[models.base.options]\nenable_lora = false\n',
            "9: [models.base] enable_lora is false, and there are adapters",
        ),
    ],
)
def test_a_mistake_about_adapters_is_named_with_its_line(tmp_path: Path, adapters: str, message: str) -> None:
    assert refusal(tmp_path, BASE + "[models.base.adapters]\n" + adapters + VECTORS) == f"/models.toml:{message}"


def test_an_engine_without_adapters_refuses_them(tmp_path: Path) -> None:
    text = VECTORS + 'adapters = { sql = "./x" }\n'
    assert refusal(tmp_path, text).endswith("adapters is for engine vllm or fake, not for sentence-transformers")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "no adapter in /lora/tone (no adapter_config.json there)"),
        ({"peft_type": "IA3"}, "/lora/tone/adapter_config.json describes no LoRA (peft_type must be LORA)"),
        ({"r": 0}, "/lora/tone/adapter_config.json: r is 0; must be a whole number, 1 or more"),
        ({"r": 32}, "its rank is 32, max_lora_rank in options is 16"),
        ({"rank_pattern": {"q_proj": 64}}, "its rank is 64, max_lora_rank in options is 16"),
    ],
)
def test_a_worker_and_a_check_refuse_an_adapter_that_does_not_fit(
    tmp_path: Path, config: dict[str, Any] | None, message: str
) -> None:
    weights(tmp_path / "base")
    lora(tmp_path / "lora/sql")
    if config is not None:
        lora(tmp_path / "lora/tone", **config)
    model = base(tmp_path, BASE + ADAPTERS + "[models.base.options]\nmax_lora_rank = 16\n")
    assert refused(model, tmp_path) == f"/models.toml:8: adapter tone: {message}"
    with pytest.raises(SettingsInvalid):
        lora_arguments(model, cpu=False)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('method = "magic"\n', "7: [models.base] method is 'magic'; allowed: ngram, draft_model"),
        ("num_speculative_tokens = 3\n", "6: [models.base] method is None; allowed: ngram, draft_model"),
        ('method = "ngram"\n', "6: [models.base] num_speculative_tokens is missing: method ngram needs it"),
        (
            'method = "draft_model"\nnum_speculative_tokens = 3\n',
            "6: [models.base] model is missing: method draft_model needs it",
        ),
        (
            'method = "ngram"\nnum_speculative_tokens = 3\nmodel = "./x"\n',
            "9: [models.base] model has no meaning for method ngram;"
            " allowed: num_speculative_tokens, prompt_lookup_min, prompt_lookup_max",
        ),
        (
            'method = "ngram"\nnum_speculative_tokens = -1\n',
            "8: [models.base] num_speculative_tokens is -1; allowed: 1 or more",
        ),
        (
            'method = "ngram"\nprompt_lookup_max = ""\n',
            "8: [models.base.speculative] prompt_lookup_max is ''; must be a whole number",
        ),
        (
            'method = "ngram"\nnum_speculative_tokens = 3\nprompt_lookup_min = 5\nprompt_lookup_max = 2\n',
            "9: [models.base] prompt_lookup_min is more than prompt_lookup_max",
        ),
    ],
)
def test_a_mistake_about_speculation_is_named_with_its_line(tmp_path: Path, table: str, message: str) -> None:
    text = BASE + "[models.base.speculative]\n" + table
    assert refusal(tmp_path, text) == "/models.toml:" + message


def test_speculation_is_asked_for_in_one_place(tmp_path: Path) -> None:
    text = BASE + DRAFT + "[models.base.options]\nspeculative_config = {}\n"
    assert "speculation is set twice: as speculative and as options.speculative_config" in refusal(tmp_path, text)
    text = VECTORS + 'speculative = { method = "ngram", num_speculative_tokens = 3 }\n'
    assert "speculative is for engine vllm, not for sentence-transformers" in refusal(tmp_path, text)


def test_a_draft_model_must_be_there_and_have_the_same_vocabulary(tmp_path: Path) -> None:
    weights(tmp_path / "base")
    model = base(tmp_path, BASE + DRAFT)
    assert refused(model, tmp_path) == "/models.toml:8: weights of base: no model in /draft (no config.json there)"
    weights(tmp_path / "draft", positions=32, vocabulary=99)
    assert refused(model, tmp_path) == (
        "/models.toml:8: speculative: the draft model has 99 tokens, the model 100: both must have the same vocabulary"
    )
    (tmp_path / "draft/config.json").write_text('{"vocab_size": 100}')
    model.check_weights()
    config = {"method": "draft_model", "model": str(tmp_path / "draft"), "num_speculative_tokens": 3}
    assert model.speculative_config() == config


def test_slots_may_go_down_to_an_eighth_unless_the_catalogue_says_otherwise(tmp_path: Path) -> None:
    assert base(tmp_path, BASE).least_slots == 8
    assert base(tmp_path, BASE + "slots = 4\n").least_slots == 1
    assert base(tmp_path, BASE + "min_slots = 64\n").least_slots == 64
    assert refusal(tmp_path, BASE + "min_slots = 65\n").endswith("min_slots (65) is above slots (64)")


def test_on_a_cpu_one_place_for_adapters_must_stay_empty(tmp_path: Path) -> None:
    """vLLM's CPU kernels give the model's own requests the weights in the last place."""
    for name in ("sql", "tone"):
        lora(tmp_path / "lora" / name)
    model = base(tmp_path, BASE + ADAPTERS)
    assert [lora_arguments(model, cpu)["max_loras"] for cpu in (True, False)] == [3, 2]
    tight = base(tmp_path, BASE + ADAPTERS + "[models.base.options]\nmax_loras = 2\n")
    assert lora_arguments(tight, cpu=False)["max_loras"] == 2
    with pytest.raises(SettingsInvalid, match="max_loras is 2; on CPU it must be at least 3"):
        lora_arguments(tight, cpu=True)
