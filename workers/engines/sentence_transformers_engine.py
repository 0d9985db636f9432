"""sentence-transformers on torch: any model that its transformer reads as tokens, on a CPU or a GPU.

The model's own modules do the work (transformer, pooling, whatever follows); only their input is prepared here, so
that a text is tokenised once. The vectors are those of a direct `encode`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from common.errors import SettingsInvalid
from workers.engines.batching import CPU_GROUPING, BatchingEngine, cores
from workers.engines.grouping import Grouping
from workers.engines.text import TextReader

if TYPE_CHECKING:
    from workers.engines.batching import Tokens, Vectors

#: As few groups as there can be: what one costs on a GPU was not measured.
GPU_GROUPING = Grouping(16_384, cost=16_384)


class TorchEncoder:
    """A SentenceTransformer whose input comes as tokens."""

    def __init__(self, model: Any, limit: int, threads: int) -> None:
        from tokenizers import Tokenizer

        tokenizer = model.tokenizer
        own = tokenizer.model_max_length
        self._model = model.eval()
        self.reader = TextReader(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), min(limit, own or limit))
        self.pad_id: int = tokenizer.pad_token_id or 0
        self.dimensions: int = model.get_embedding_dimension()
        pooling = next((module for module in model if hasattr(module, "pooling_mode")), None)
        self.pooling = str(getattr(pooling, "pooling_mode", "no"))
        self.pools_prompt: bool = getattr(pooling, "include_prompt", True)
        self._on_cpu = model.device.type == "cpu"
        self.grouping, self.threads = (CPU_GROUPING, threads) if self._on_cpu else (GPU_GROUPING, 1)

    def enter_thread(self) -> None:
        """One core for each thread: they run groups of their own."""
        import torch

        if self._on_cpu:
            torch.set_num_threads(1)

    def encode(self, ids: Tokens, mask: Tokens) -> Vectors:
        """Vectors of padded texts."""
        import torch

        device = self._model.device
        with torch.inference_mode():
            features = {
                "input_ids": torch.from_numpy(ids).to(device),
                "attention_mask": torch.from_numpy(mask).to(device),
            }
            vectors: Vectors = self._model(features)["sentence_embedding"].float().cpu().numpy()
        return vectors


class SentenceTransformersEngine(BatchingEngine):
    """One embedding model on torch."""

    def load(self) -> TorchEncoder:
        """The model, on the device that the options name or the best there is."""
        if self.model.local:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from sentence_transformers import SentenceTransformer

        options = self.model.engine_options
        model = SentenceTransformer(
            self.model.weights_path(),
            device=options.get("device"),
            revision=options.get("revision"),
            local_files_only=self.model.local,
            model_kwargs={"dtype": options["dtype"]} if "dtype" in options else None,
            trust_remote_code=options.get("trust_remote_code", False),
        )
        if not hasattr(model.tokenizer, "backend_tokenizer"):
            raise SettingsInvalid(f"{self.model.place}: {self.model.alias}: the weights have no tokenizer.json")
        return TorchEncoder(model, self.model.max_model_len, options.get("threads", cores()))
