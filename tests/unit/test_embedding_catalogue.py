"""The catalogue's part of embedding: presets of models, prompts, sizes, and what contradicts them."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.catalogue import Model
from common.embedding_presets import EMBEDDING_PRESETS
from common.errors import CatalogueInvalid
from tests.unit.catalogues import load

ENTRY = """\
[models.v]
kind = "embedding"
engine = "onnx"
weights = "./v"
dimensions = [64, 128]
default_prompt = "query"
prompts = { query = "query: ", passage = "" }
[models.v.defaults]
input_type = "passage"
encoding_format = "base64"
[models.v.options]
batch_tokens = 512
batch_wait_ms = 2.5
"""


def only(folder: Path, text: str) -> Model:
    (model,) = load(folder, text).models.values()
    return model


def preset(name: str, more: str = "") -> str:
    return f'[models.v]\nkind = "embedding"\nengine = "onnx"\npreset = "{name}"\n{more}'


def test_an_entry_names_its_prompts_and_sizes(tmp_path: Path) -> None:
    model = only(tmp_path, ENTRY)
    assert model.prompts == {"query": "query: ", "passage": ""}
    assert (model.default_prompt, model.dimensions) == ("query", [64, 128])


@pytest.mark.parametrize("name", EMBEDDING_PRESETS)
def test_a_preset_alone_is_an_entry(tmp_path: Path, name: str) -> None:
    model = only(tmp_path, preset(name))
    keys = EMBEDDING_PRESETS[name].keys
    assert (model.weights, model.max_model_len) == (keys["weights"], keys["max_model_len"])
    assert model.defaults == keys.get("defaults", {})


def test_what_an_entry_says_wins_over_its_preset(tmp_path: Path) -> None:
    e5 = only(tmp_path, preset("e5-small-v2", 'weights = "./e5"\ndefaults = { truncate = false }'))
    assert (e5.weights, e5.max_model_len, e5.default_prompt) == ("./e5", 512, "query")
    assert e5.prompts == {"query": "query: ", "passage": "passage: "}
    assert e5.defaults == {"normalize": True, "truncate": False}
    assert only(tmp_path, preset("e5-small-v2", 'prompts = { a = "b" }')).default_prompt is None


def test_a_model_that_brings_its_own_code_is_refused_until_that_is_trusted(tmp_path: Path) -> None:
    text = preset("jina-embeddings-v2-small").replace("onnx", "sentence-transformers")
    with pytest.raises(CatalogueInvalid, match=r"models\.toml:4: .*set options\.trust_remote_code = true"):
        only(tmp_path, text)
    assert only(tmp_path, text + "options.trust_remote_code = true").options == {"trust_remote_code": True}
    assert only(tmp_path, preset("jina-embeddings-v2-small")).engine == "onnx"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('default_prompt = "query"', 'default_prompt = "title"', "6: [models.v] default_prompt is 'title'; allowed: "),
        ('query = "query: "', "query = 3", "7: [models.v] prompt query is 3; must be a string"),
        ('query = "query: "', '"a b" = "x", query = ""', "7: [models.v] prompt 'a b': at most 32"),
        ("[64, 128]", "[64, 0]", "5: [models.v] dimensions has 0; allowed: whole numbers from 1"),
        ("[64, 128]", '["64"]', "5: [models.v] dimensions has '64'"),
        ('"base64"', '"hex"', "8: [models.v] defaults: encoding_format is 'hex'; allowed: float, base64"),
        ('"passage"', '"title"', "8: [models.v] defaults: input_type is 'title'; allowed: query, passage"),
        ('input_type = "passage"', "dimensions = 32", "8: [models.v] defaults: dimensions is 32; allowed: 64, 128"),
        ("batch_tokens = 512", "batch_tokens = 0", "12: [models.v] batch_tokens is 0; allowed: 1 or more"),
        ("batch_wait_ms = 2.5", "batch_wait_ms = -1", "13: [models.v] batch_wait_ms is -1; allowed: 0 or more"),
        ('weights = "./v"', 'weights = "./v"\npreset = "latency"', "5: [models.v] preset is 'latency'; allowed for"),
        ('weights = "./v"', 'weights = "./v"\ndtype = "float16"', "5: [models.v] dtype is for engine vllm or"),
    ],
)  # fmt: skip
def test_a_mistake_is_refused_with_its_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in ENTRY
    with pytest.raises(CatalogueInvalid) as caught:
        only(tmp_path, ENTRY.replace(old, new, 1))
    assert f"models.toml:{said}" in str(caught.value)


def test_generation_has_no_prompts_and_no_embedding_presets(tmp_path: Path) -> None:
    text = '[models.g]\nkind = "generation"\nengine = "vllm"\nweights = "./g"\nmax_model_len = 9\n'
    with pytest.raises(CatalogueInvalid, match="prompts is for engine sentence-transformers"):
        only(tmp_path, text + 'prompts = { a = "b" }')
    with pytest.raises(CatalogueInvalid, match="allowed for generation: throughput"):
        only(tmp_path, text + 'preset = "bge-m3"')
