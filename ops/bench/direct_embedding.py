"""sentence-transformers alone, in a process of its own: `python -m ops.bench.direct_embedding FOLDER`.

Loads the model, then answers each line of JSON (`{"texts": [...]}`) with how long one `encode` of all of them took.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main(folder: str) -> None:
    """Answer until the input ends."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder)
    print("{}", flush=True)
    for line in sys.stdin:
        texts = json.loads(line)["texts"]
        started = time.perf_counter()
        vectors = model.encode(texts)
        print(json.dumps({"seconds": time.perf_counter() - started, "vectors": len(vectors)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
