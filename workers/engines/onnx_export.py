"""Makes the ONNX graph of a sentence-transformers model: `python -m workers.engines.onnx_export FOLDER FILE`.

The graph is compared with the model that it was made of before it gets its name: a graph that is there is whole and
gives the same vectors. Ends with the process that started it.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

#: Most that a number of a vector may differ from torch's.
TOLERANCE = 1e-4
SAMPLES = ["", "short", "A job waits in its lane, a worker claims it.", "Ünïcödé — 日本語", "many words " * 60]


def main(folder: str, file: str, trust_remote_code: bool) -> int:
    """Make it; returns the exit code."""
    from workers.engines.owner import follow

    follow(os.getppid())
    kept = Path(file)
    kept.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that the last step is one rename: no worker ever loads half a graph.
    made = Path(tempfile.mkdtemp(prefix="making-", dir=kept.parent))
    try:
        difference = make(Path(folder), made / "model.onnx", trust_remote_code)
        if difference > TOLERANCE:
            print(f"the graph's vectors differ from torch's by {difference:.1e}, more than {TOLERANCE:g}")
            return 1
        (made / "model.onnx").replace(kept)
    finally:
        shutil.rmtree(made)
    print(f"{kept.stat().st_size / 2**20:.0f} MiB; its vectors differ from torch's by at most {difference:.1e}")
    return 0


def make(folder: Path, file: Path, trust_remote_code: bool) -> float:
    """Write the graph; returns the largest difference of any number of the samples' vectors from torch's."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import numpy as np
    from sentence_transformers import SentenceTransformer

    from workers.engines.batching import padded
    from workers.engines.onnx_engine import OnnxEncoder
    from workers.engines.sentence_folder import SentenceFolder

    model = SentenceTransformer(
        str(folder),
        device="cpu",
        trust_remote_code=trust_remote_code,
        model_kwargs={"attn_implementation": "eager"},  # the others leave the mask out where an example has no padding
    )
    export(model[0].model.float().eval(), file)
    said = SentenceFolder.read(folder, getattr(model[1], "pooling_mode", None) if len(model) > 1 else None)
    encoder = OnnxEncoder(file, said, model.max_seq_length or 512, 1)
    ours = encoder.encode(*padded(encoder.reader.read(SAMPLES), encoder.pad_id))
    return float(np.abs(ours - model.encode(SAMPLES)).max())


def export(transformer: Any, file: Path) -> None:
    """The transformer's graph, for any number of texts and tokens."""
    import torch

    class Tokens(torch.nn.Module):  # type: ignore[misc]
        """From tokens to a vector for each, and nothing else."""

        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    ids = torch.ones((2, 8), dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    axes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
    torch.onnx.export(
        Tokens(),
        (ids, mask),
        str(file),
        input_names=["input_ids", "attention_mask"],
        output_names=["last_hidden_state"],
        dynamic_shapes={"input_ids": axes, "attention_mask": axes},
        dynamo=True,
        external_data=False,
        verbose=False,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], "--trust-remote-code" in sys.argv))
