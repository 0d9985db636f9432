"""An embedding model alone, in a process of its own: `python -m ops.bench.direct_embedding CATALOGUE`.

Loads the catalogue's model, then answers each line of JSON: `{"texts": [...], "batch_size": 32}` with how long it took
to encode all of them in one call, `{"reference": [...]}` with the vectors of sentence-transformers in float32.
"""

from __future__ import annotations

import asyncio
import json
import os
import pkgutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common.catalogue import Catalogue, Model

Encode = Callable[[list[str], int], Any]
# Looked up by name, as the Procfile names programs: nothing here builds on the workers' code.
ENGINE = "workers.engines.onnx_engine:OnnxEngine"
FILE = "workers.engines.onnx_file:onnx_file"
PADDED = "workers.engines.batching:padded"


def sentence_transformers(model: Model) -> Encode:
    """Its own `encode`."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(model.weights_path())
    return lambda texts, size: encoder.encode(texts, batch_size=size, show_progress_bar=False)


def onnx(model: Model, data_dir: Path) -> Encode:
    """ONNX Runtime as the worker runs it, with all texts at hand: tokenised at once, sorted, a group on each core."""
    import numpy as np

    engine = pkgutil.resolve_name(ENGINE)(model, data_dir)
    engine.graph = asyncio.run(pkgutil.resolve_name(FILE)(model, data_dir))
    encoder, padded = engine.load(), pkgutil.resolve_name(PADDED)
    pool = ThreadPoolExecutor(encoder.threads)

    def encode(texts: list[str], size: int) -> Any:
        read = sorted(encoder.reader.read(texts), key=lambda text: -len(text.ids))
        groups = [read[start : start + size] for start in range(0, len(read), size)]
        return np.concatenate(list(pool.map(lambda group: encoder.encode(*padded(group, encoder.pad_id)), groups)))

    return encode


def main(catalogue: str) -> None:
    """Answer until the input ends."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    model = Catalogue.load(catalogue).of_kind("embedding")[0]
    encode = onnx(model, Path(catalogue).parent / "data") if model.engine == "onnx" else sentence_transformers(model)
    print("{}", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "reference" in asked:
            answer = {"vectors": sentence_transformers(model)(asked["reference"], 32).tolist()}
        else:
            started = time.perf_counter()
            encode(asked["texts"], asked["batch_size"])
            answer = {"seconds": time.perf_counter() - started}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
