"""What the catalogue says of hosted models, fallback chains and prices, and which mistakes in it are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.cost import Cost
from common.upstream import Upstream
from tests.unit.catalogues import load, refusal

GOOD = """\
[models.local]
kind = "generation"
engine = "fake"
max_model_len = 128
fallback = ["hosted"]
fallback_after_s = 5

[models.hosted]
kind = "generation"
engine = "openai"
weights = "gpt-5-mini"
max_model_len = 8192

[models.hosted.options]
base_url = "https://example.com/v1"
api_key_env = "HOSTED_KEY"
concurrency = 3
headers_env = { X-Team = "TEAM" }

[models.hosted.cost]
currency = "EUR"
input = 0.25
output = 2

[models.vectors]
kind = "embedding"
engine = "openai"
weights = "embed-v4"
options = { base_url = "https://example.com/v2", flavour = "cohere" }
"""


def test_a_hosted_model_is_read_and_has_a_slot_for_each_call_it_takes(tmp_path: Path) -> None:
    catalogue = load(tmp_path, GOOD)
    local, hosted = catalogue.models["local"], catalogue.models["hosted"]
    assert (hosted.slots, catalogue.models["vectors"].slots) == (3, 8)
    assert hosted.weights_path() == "gpt-5-mini"
    assert hosted.cost == Cost("EUR", 0.25, 2)
    assert catalogue.chain(local) == [local, hosted]
    assert catalogue.chain(hosted) == [hosted]
    assert local.fallback_after_s == 5
    assert Upstream.of(hosted.options).texts == 2048
    assert Upstream.of(catalogue.models["vectors"].options).texts == 96
    assert load(tmp_path, GOOD.replace('"gpt-5-mini"\n', '"gpt-5-mini"\nslots = 50\n')).models["hosted"].slots == 50


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('base_url = "https://example.com/v1"\n', "", ":8: [models.hosted] base_url is None; allowed: an address"),
        ("https://example.com/v1", "ftp://example.com", ":15: [models.hosted] base_url is 'ftp://example.com'; allow"),
        ("https://example.com/v1", "https://", ":15: [models.hosted] base_url is"),
        ("https://example.com/v1", "http://h:x/v1", ":15: [models.hosted] base_url is"),
        ("https://example.com/v1", "https://me:sk-1@h/v1", ":15: [models.hosted] base_url is 'one with credentials'"),
        ('"HOSTED_KEY"', '"sk-12345"', ":16: [models.hosted] api_key_env is 'no name'; allowed: the name of a"),
        ("api_key_env", "api_key", ":16: [models.hosted.options] unknown key 'api_key'; allowed: base_url"),
        ("concurrency = 3", "concurrency = 0", ":17: [models.hosted] concurrency is 0; allowed: 1 to 10000"),
        ("concurrency = 3", 'concurrency = "3"', ":17: [models.hosted.options] concurrency is '3'; must be a whole"),
        ("concurrency = 3", "timeout_s = 0", ":17: [models.hosted] timeout_s is 0; allowed: more than 0"),
        ("concurrency = 3", "hold_s = -1", ":17: [models.hosted] hold_s is -1; allowed: 0 to 3600"),
        ("concurrency = 3", "max_retries = 11", ":17: [models.hosted] max_retries is 11; allowed: 0 to 10"),
        ("concurrency = 3", 'flavour = "azure"', ":17: [models.hosted] flavour is 'azure'; allowed: openai, cohere"),
        ("concurrency = 3", 'api_key_header = "a b"', ":17: [models.hosted] api_key_header is 'a b'; allowed"),
        ('X-Team = "TEAM"', "X-Team = 3", ":18: [models.hosted] headers_env is {'X-Team': 3}; allowed: names of"),
        ('flavour = "cohere"', 'batch_texts = -5', "[models.vectors] batch_texts is -5; allowed: 1 to 10000"),
        ('fallback = ["hosted"]', 'fallback = ["gone"]', ":5: [models.local] fallback names 'gone'; allowed, once"),
        ('fallback = ["hosted"]', 'fallback = ["local"]', ":5: [models.local] fallback names 'local'; allowed"),
        ('fallback = ["hosted"]', 'fallback = ["vectors"]', ":5: [models.local] fallback names 'vectors'; allowed"),
        ('fallback = ["hosted"]', 'fallback = ["hosted", "hosted"]', ":5: [models.local] fallback names 'hosted'; al"),
        ('fallback = ["hosted"]', 'fallback = [3]', ":5: [models.local] fallback names 3; allowed"),
        ('fallback = ["hosted"]', 'fallback = "hosted"', ":5: [models.local] fallback is 'hosted'; must be a list"),
        ('fallback = ["hosted"]\n', "", ":5: [models.local] fallback_after_s needs a fallback"),
        ("fallback_after_s = 5", "fallback_after_s = 0", ":6: [models.local] fallback_after_s is 0; allowed: more"),
        ("fallback_after_s = 5", "defaults.top_k = 5", ":5: [models.local] defaults.top_k: the upstream of its fallb"),
        ('"gpt-5-mini"', '"x"\ndefaults.min_p = 0.1', ":12: [models.hosted] defaults.min_p: its upstream has no"),
        ('"embed-v4"', '"embed-v4"\nfallback = ["hosted"]', "[models.vectors] fallback is for generation: emb"),
        ("fallback_after_s = 5", 'adapters = { a = "./a" }', ":5: [models.local] fallback is for a model without adap"),
        ('currency = "EUR"\n', "", "[models.hosted] cost.currency is ''; allowed: three capitals"),
        ('currency = "EUR"', 'currency = "euro"', "[models.hosted] cost.currency is 'euro'; allowed: three capitals"),
        ("output = 2", "output = -2", "[models.hosted] cost.output is -2; allowed: 0 to 1000000"),
        ("output = 2", "outptu = 2", "[models.hosted.cost] unknown key 'outptu'; allowed: currency, input"),
    ],
)  # fmt: skip
def test_a_mistake_is_refused_with_its_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    refused = refusal(tmp_path, GOOD.replace(old, new, 1))
    assert said in refused
    assert "sk-" not in refused, "a key in the wrong place is not repeated"


def test_an_upstream_like_vllm_knows_the_parameters_of_vllm(tmp_path: Path) -> None:
    hosted = load(tmp_path, GOOD).models["hosted"]
    assert hosted.unknown_params(["top_k", "temperature", "stop", "min_tokens"]) == ["top_k", "min_tokens"]
    extended = load(tmp_path, GOOD.replace("concurrency = 3", "extensions = true")).models["hosted"]
    assert extended.unknown_params(["top_k", "min_tokens"]) == []
