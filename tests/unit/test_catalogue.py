from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.catalogue import Catalogue, Model
from common.errors import CatalogueInvalid, SettingsInvalid, UnknownModel
from common.presets import PRESETS
from tests.unit.catalogues import load, refusal

SHIPPED = Path(__file__).parents[2] / "ops" / "models.toml"

GOOD = """\
[models.small]
kind = "generation"
engine = "vllm"
weights = "./small"
max_model_len = 128

[models.small.defaults]
temperature = 0
stop = ["END"]

[models.vectors]
kind = "embedding"
engine = "sentence-transformers"
weights = "package:json/models"
"""


def weights(folder: Path, positions: int = 128) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": positions}))


def model(folder: Path, text: str = GOOD, alias: str = "small") -> Model:
    return load(folder, text).models[alias]


def test_the_shipped_catalogue_has_the_two_models_that_need_no_hub() -> None:
    catalogue = Catalogue.load(SHIPPED)
    assert {model.queue for model in catalogue.models.values()} == {"generation:demo", "embedding:minilm"}
    assert all(model.local for model in catalogue.models.values())


def test_an_entry_is_read_with_the_defaults_of_its_kind(tmp_path: Path) -> None:
    catalogue = load(tmp_path, GOOD)
    small, vectors = catalogue.get("generation", "small"), catalogue.get("embedding", "vectors")
    assert (small.queue, small.slots, small.max_model_len) == ("generation:small", 64, 128)
    assert small.defaults == {"temperature": 0, "stop": ["END"]}
    assert (vectors.queue, vectors.slots) == ("embedding:vectors", 256)


@pytest.mark.parametrize(("kind", "alias"), [("generation", "nobody"), ("embedding", "small")])
def test_an_unknown_model_is_refused_with_the_known_ones_of_that_kind(tmp_path: Path, kind: str, alias: str) -> None:
    catalogue = load(tmp_path, GOOD)
    with pytest.raises(UnknownModel) as caught:
        catalogue.get(kind, alias)
    assert caught.value.known == [model.alias for model in catalogue.of_kind(kind)]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('engine = "vllm"', 'engine = "vlmm"', "/models.toml:3: [models.small] engine is 'vlmm'"),
        ('kind = "generation"', 'kind = "chat"', "/models.toml:2: [models.small] kind is 'chat'"),
        ('kind = "generation"\n', "", "/models.toml:1: [models.small] kind is None; allowed"),
        ('weights = "./small"\n', "", "/models.toml:1: [models.small] weights is missing"),
        ("max_model_len = 128\n", "", "/models.toml:1: [models.small] max_model_len is missing"),
        ("max_model_len = 128", 'max_model_len = "128"', ":5: [models.small] max_model_len is '128'; must"),
        ("max_model_len = 128", "max_model_len = true", ":5: [models.small] max_model_len is True; must be"),
        ("max_model_len = 128", "max_model_len = 0", ":5: [models.small] max_model_len is 0; allowed"),
        ("max_model_len = 128", "max_model_len = 128\nslots = 0", ":6: [models.small] slots is 0; allowed"),
        ("max_model_len = 128", "max_len = 128", ":5: [models.small] unknown key 'max_len'; allowed: kind"),
        ("temperature = 0", 'temperature = "hot"', ":8: [models.small.defaults] temperature is 'hot'; must"),
        ("temperature = 0", "tempratur = 0", ":8: [models.small.defaults] unknown key 'tempratur'"),
        ('stop = ["END"]', "stop = 3", ":9: [models.small.defaults] stop is 3; must be a str"),
        ("[models.small]", "[modles.small]", ":1: unknown table 'modles'; allowed: models"),
        ("[models.small]", '[models."sm all"]', "alias 'sm all': at most 64"),
        ("[models.vectors]", "[models]\nflat = 3\n[models.vectors]", ":12: [models] flat must be a table"),
        ("max_model_len = 128", "max_model_len =", "is not TOML: Invalid value (at line 5, column 16)"),
    ],
)
def test_a_mistake_is_refused_with_its_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert said in refusal(tmp_path, GOOD.replace(old, new, 1))


def test_every_mistake_of_the_file_is_told_not_only_the_first(tmp_path: Path) -> None:
    text = GOOD.replace('engine = "vllm"', 'engine = "vlmm"').replace("package:json/models", "x")
    text = text.replace('kind = "embedding"', 'kind = "embedding"\nslots = 0\nbatch = 1') + "[wrong]\n"
    with pytest.raises(CatalogueInvalid) as caught:
        load(tmp_path, text)
    lines = [problem.replace(str(tmp_path), "").partition(": ")[0] for problem in caught.value.problems]
    assert lines == ["/models.toml:17", "/models.toml:3", "/models.toml:14", "/models.toml:13"]


VLLM = """\
[models.m]
kind = "generation"
engine = "vllm"
weights = "./m"
max_model_len = 4096
"""


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ('preset = "fast"', ":6: [models.m] preset is 'fast'; allowed: throughput, latency, small-gpu, cpu"),
        ('dtype = "int4"', ":6: [models.m] dtype is 'int4'; allowed: auto, bfloat16, float16, float32"),
        ('revision = "main"', ":6: [models.m] revision is of a hub's model, and the weights ./m are local"),
        ('preset = "cpu"\noptions.gpu_memory_utilization = 0.5', ":7: [models.m] preset cpu has no use for gpu_mem"),
        (
            "[models.m.options]\nenable_chunked_prefill = false\nmax_num_batched_tokens = 2048",
            ":7: [models.m] a prompt of max_model_len (4096) tokens does not fit a step of max_num_batched",
        ),
        ('preset = "latency"\noptions.enable_chunked_prefill = false', ":7: [models.m] a prompt of max_model_len"),
        ('preset = "latency"\noptions.max_num_batched_tokens = 16', ":7: [models.m] max_num_batched_tokens (16) is"),
        (
            "[models.m.options]\ngpu_memory_utilization = 0.5\nkv_cache_memory_bytes = 1",
            ":7: [models.m] kv_cache_memory_bytes sets the cache's size, so",
        ),
        ('dtype = "float16"\noptions.dtype = "float16"', ":7: [models.m] dtype is set twice: as dtype and as opt"),
        ('options.model = "x"', ":6: [models.m] options.model is set by the key weights"),
        ("options.disable_log_stats = true", ":6: [models.m] options.disable_log_stats is set by the worker"),
    ],
)
def test_what_contradicts_itself_is_refused_with_its_line_and_the_reason(tmp_path: Path, entry: str, said: str) -> None:
    assert said in refusal(tmp_path, VLLM + entry + "\n")


def test_a_gguf_file_takes_no_other_quantization_and_no_other_engine(tmp_path: Path) -> None:
    gguf = VLLM.replace("./m", "./m.gguf")
    assert model(tmp_path, gguf, "m").gguf
    assert ":6: [models.m] quantization is 'awq', and the weights are a .gguf" in refusal(
        tmp_path, gguf + 'quantization = "awq"\n'
    )
    assert ":6: [models.m] quantization is 'awq'" in refusal(tmp_path, gguf + 'options.quantization = "awq"\n')
    vectors = GOOD.replace("package:json/models", "./v.gguf")
    assert ":14: [models.vectors] a .gguf file is for engine vllm" in refusal(tmp_path, vectors)


def test_a_gguf_file_must_be_one(tmp_path: Path) -> None:
    found = model(tmp_path, VLLM.replace("./m", "./m.gguf"), "m")
    with pytest.raises(SettingsInvalid, match=r"models.toml:1: weights of m: .*m.gguf cannot be read: No such file"):
        found.weights_path()
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(SettingsInvalid, match="no GGUF file"):
        found.weights_path()
    (tmp_path / "m.gguf").write_bytes(b"GGUF\x03")
    assert found.weights_path() == str(tmp_path / "m.gguf")


def test_a_key_of_another_engine_is_refused(tmp_path: Path) -> None:
    text = GOOD.replace('kind = "embedding"', 'kind = "embedding"\nquantization = "fp8"')
    assert ":13: [models.vectors] quantization is for engine vllm, not for sentence-transformers" in refusal(
        tmp_path, text
    )


def test_the_engine_gets_the_preset_under_the_entrys_own_keys_and_options(tmp_path: Path) -> None:
    text = VLLM + 'preset = "throughput"\ndtype = "float16"\noptions.max_num_seqs = 8\noptions.seed = 1\n'
    options = model(tmp_path, text, "m").engine_options
    assert options == {**PRESETS["throughput"], "dtype": "float16", "max_num_seqs": 8, "seed": 1}
    assert (options["max_num_batched_tokens"], options["gpu_memory_utilization"]) == (8192, 0.92)


def test_a_cache_size_in_bytes_takes_the_place_of_the_presets_share(tmp_path: Path) -> None:
    options = model(tmp_path, VLLM + 'preset = "latency"\noptions.kv_cache_memory_bytes = 9\n', "m").engine_options
    assert options["kv_cache_memory_bytes"] == 9
    assert "gpu_memory_utilization" not in options


def test_a_worker_holds_as_many_jobs_as_the_preset_runs_at_once_unless_told_otherwise(tmp_path: Path) -> None:
    assert model(tmp_path, VLLM, "m").slots == 64
    assert model(tmp_path, VLLM + 'preset = "throughput"\n', "m").slots == 256
    assert model(tmp_path, VLLM + 'preset = "throughput"\noptions.max_num_seqs = 5\n', "m").slots == 5
    assert model(tmp_path, VLLM + 'preset = "throughput"\nslots = 7\n', "m").slots == 7


def test_a_tokenizer_in_a_folder_is_found_from_the_catalogue_file(tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    text = VLLM.replace("./m", "./m.gguf")
    assert model(tmp_path, text + 'tokenizer = "./words"\n', "m").engine_options["tokenizer"] == str(tmp_path / "words")
    assert model(tmp_path, text + 'tokenizer = "owner/words"\n', "m").tokenizer_path() == "owner/words"


def test_every_key_of_an_entry_knows_its_line(tmp_path: Path) -> None:
    found = model(tmp_path, VLLM + 'dtype = "float16"\n\n[models.m.options]\nseed = 1\n', "m")
    places = [found.place_of(key).replace(str(tmp_path), "") for key in ("dtype", "seed", "options.seed", "slots")]
    assert places == ["/models.toml:6", "/models.toml:9", "/models.toml:9", "/models.toml:1"]


def test_options_of_an_engine_are_checked_but_vllm_checks_its_own(tmp_path: Path) -> None:
    fake = '[models.f]\nkind = "generation"\nengine = "fake"\nmax_model_len = 9\noptions.tokens = "x"\n'
    assert ":5: [models.f.options] tokens is 'x'; must be a whole number" in refusal(tmp_path, fake)
    assert model(tmp_path, GOOD + "[models.small.options]\nany = 1\n").options == {"any": 1}


def test_a_file_that_is_missing_empty_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="cannot be read: No such file"):
        Catalogue.load(tmp_path / "none.toml")
    assert "no model" in refusal(tmp_path, "")
    (tmp_path / "models.toml").write_bytes(b"\xff")
    with pytest.raises(SettingsInvalid, match="not UTF-8"):
        Catalogue.load(tmp_path / "models.toml")


def test_a_relative_folder_starts_from_the_catalogue_file(tmp_path: Path) -> None:
    weights(tmp_path / "small")
    assert model(tmp_path).weights_path() == str(tmp_path / "small")


def test_missing_weights_are_refused_with_the_place_of_the_entry(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match=r"models.toml:1: weights of small: no model in .*small"):
        model(tmp_path).weights_path()
    with pytest.raises(SettingsInvalid, match="the package nobody_has_this is not installed"):
        model(tmp_path, GOOD.replace("package:json", "package:nobody_has_this"), "vectors").weights_path()
    with pytest.raises(SettingsInvalid, match="no model in"):
        Catalogue.load(tmp_path / "models.toml").check_weights()


def test_weights_of_a_package_lie_in_its_folder(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match=r"no model in .*json.models"):
        model(tmp_path, alias="vectors").weights_path()


def test_a_context_longer_than_the_models_own_is_refused(tmp_path: Path) -> None:
    weights(tmp_path / "small", positions=64)
    with pytest.raises(SettingsInvalid, match="has 64 positions, max_model_len is 128"):
        model(tmp_path).weights_path()


def test_owner_and_name_is_a_hub_id_unless_such_a_folder_exists(tmp_path: Path) -> None:
    hub = GOOD.replace("./small", "owner/small")
    assert not model(tmp_path, hub).local
    assert model(tmp_path, hub).weights_path() == "owner/small"
    (tmp_path / "owner").mkdir()
    weights(tmp_path / "owner" / "small")
    assert model(tmp_path, hub).weights_path() == str(tmp_path / "owner" / "small")


WHISPER = """\
[models.ears]
kind = "transcription"
engine = "faster-whisper"
weights = "./whisper"
"""


def test_a_whisper_is_read_with_the_defaults_of_its_kind(tmp_path: Path) -> None:
    ears = model(tmp_path, WHISPER, "ears")
    assert (ears.queue, ears.slots, ears.max_model_len) == ("transcription:ears", 16, 448)


@pytest.mark.parametrize(
    ("entry", "line", "message"),
    [
        ("[models.ears.options]\nbatch_size = 0", 6, "batch_size is 0; allowed: 1 to 256"),
        ("[models.ears.options]\nchunk_s = 31", 6, "chunk_s is 31; allowed: 1 to 30"),
        ("[models.ears.options]\nvad_threshold = 1.5", 6, "vad_threshold is 1.5; allowed: 0 to 1"),
        ("[models.ears.options]\ncompute_type = 'int4'", 6, "compute_type is 'int4'; allowed: default, auto, int8"),
        ("[models.ears.options]\ndevice = 'tpu'", 6, "device is 'tpu'; allowed: auto, cpu, cuda"),
        ("[models.ears.options]\nthreads = 4", 6, "unknown key 'threads'"),
        ("[models.ears.defaults]\nlanguage = 'klingon'", 5, "language is 'klingon'; allowed: af, am"),
        ("[models.ears.defaults]\nresponse_format = 'doc'", 5, "response_format is 'doc'; allowed: json, text, srt"),
        ("[models.ears.defaults]\ntemperature = 2", 5, "temperature is 2; allowed: 0 to 1"),
        ("[models.ears.defaults]\ntimestamp_granularities = ['letter']", 5, "timestamp_granularities is ['letter']"),
        ("[models.ears.defaults]\nseed = 1", 6, "unknown key 'seed'"),
    ],
)
def test_a_mistake_in_a_whisper_s_entry_is_named_with_its_line(
    tmp_path: Path, entry: str, line: int, message: str
) -> None:
    said = refusal(tmp_path, f"{WHISPER}{entry}\n")
    assert f"models.toml:{line}: [models.ears" in said
    assert message in said
