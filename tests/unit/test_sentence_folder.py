from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.catalogue import Catalogue
from common.errors import SettingsInvalid
from workers.engines.onnx_engine import pooled
from workers.engines.sentence_folder import SentenceFolder

SHIPPED = Path(__file__).parents[2] / "ops" / "models.toml"


def test_pooling_takes_the_tokens_that_are_there() -> None:
    tokens = np.array([[[1, 2], [3, 4], [90, 90]], [[5, 6], [7, 8], [9, 1]]], np.float32)
    mask = np.array([[1, 1, 0], [1, 1, 1]])
    assert pooled(tokens, mask, "mean").tolist() == [[2, 3], [7, 5]]
    assert pooled(tokens, mask, "cls").tolist() == [[1, 2], [5, 6]]
    assert pooled(tokens, mask, "max").tolist() == [[3, 4], [9, 8]]
    assert pooled(tokens, mask, "lasttoken").tolist() == [[3, 4], [9, 1]]


def test_a_folder_says_how_its_vectors_are_made_and_what_we_cannot_compute_is_refused(tmp_path: Path) -> None:
    minilm = Catalogue.load(SHIPPED).get("embedding", "minilm")
    read = SentenceFolder.read(Path(minilm.weights_path()))
    assert (read.pooling, read.normalize, read.limit, read.pad_id) == ("mean", True, 256, 0)
    with pytest.raises(SettingsInvalid, match=r"no modules\.json, so no pooling"):
        SentenceFolder.read(tmp_path)
    assert SentenceFolder.read(tmp_path, "cls").normalize is False
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense", "path": "1_Dense"}]')
    with pytest.raises(SettingsInvalid, match="engine onnx computes no Dense; use sentence-transformers"):
        SentenceFolder.read(tmp_path)
