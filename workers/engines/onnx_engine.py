"""ONNX Runtime on the CPU: an embedding model's transformer as a graph, pooling and normalisation beside it.

The weights are a folder with `model.onnx` (or `onnx/model.onnx`). One that has none, as most, is exported from its
torch weights at the first start, by a process of its own (`onnx_export.py`), and kept in the data directory: the
worker itself never loads torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.catalogue import Model
from common.embedding_presets import EMBEDDING_PRESETS
from common.errors import SettingsInvalid
from workers.engines.batching import CPU_GROUPING, BatchingEngine, cores
from workers.engines.onnx_file import onnx_file, weights_folder
from workers.engines.sentence_folder import SentenceFolder
from workers.engines.text import TextReader

if TYPE_CHECKING:
    from workers.engines.batching import Tokens, Vectors


class OnnxEncoder:
    """A graph from tokens to a vector for each token, and what makes one vector of them."""

    def __init__(self, file: Path, folder: SentenceFolder, limit: int, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # each thread runs groups of its own
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._inputs = [one.name for one in self._session.get_inputs()]
        if unknown := set(self._inputs) - {"input_ids", "attention_mask", "token_type_ids"}:
            raise SettingsInvalid(f"{file}: unknown inputs {', '.join(sorted(unknown))}")
        outputs = [one.name for one in self._session.get_outputs() if len(one.shape) == 3]
        if not outputs:
            raise SettingsInvalid(f"{file}: no output of the shape (texts, tokens, numbers)")
        self._output = outputs[0]
        self._folder = folder
        self.reader = TextReader(folder.tokenizer(), min(limit, folder.limit or limit))
        self.pad_id = folder.pad_id
        self.pooling = folder.pooling
        self.pools_prompt = folder.pools_prompt
        self.grouping, self.threads = CPU_GROUPING, threads
        import numpy as np

        one = np.ones((1, 2), np.int64)
        self.dimensions = int(self.encode(one, one).shape[1])

    def enter_thread(self) -> None:
        """Nothing to prepare."""

    def encode(self, ids: Tokens, mask: Tokens) -> Vectors:
        """Vectors of padded texts."""
        import numpy as np

        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (tokens,) = self._session.run([self._output], {name: given[name] for name in self._inputs})
        vectors = pooled(tokens, mask, self.pooling)
        if self._folder.normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
        return vectors


class OnnxEngine(BatchingEngine):
    """One embedding model on ONNX Runtime."""

    def __init__(self, model: Model, data_dir: Path) -> None:
        super().__init__(model)
        self._data_dir = data_dir
        self.graph = Path()

    async def start(self) -> None:
        """Find or make the graph, then load it."""
        self.graph = await onnx_file(self.model, self._data_dir)
        await super().start()

    def load(self) -> OnnxEncoder:
        """The graph, on as many threads as the options or the cores of this process allow."""
        preset = EMBEDDING_PRESETS.get(self.model.preset or "")
        folder = SentenceFolder.read(weights_folder(self.model), preset.pooling if preset else None)
        threads = self.model.options.get("threads", cores())
        return OnnxEncoder(self.graph, folder, self.model.max_model_len, threads)


def pooled(tokens: Any, mask: Tokens, pooling: str) -> Vectors:
    """One vector a text from `tokens` (texts, tokens, numbers), of which those count where `mask` is 1."""
    import numpy as np

    vectors: Vectors
    if pooling == "cls":
        vectors = tokens[:, 0].copy()
    elif pooling == "lasttoken":
        vectors = tokens[np.arange(len(tokens)), mask.sum(axis=1) - 1]
    elif pooling == "max":
        vectors = np.where(mask[:, :, None] == 1, tokens, -np.inf).max(axis=1).astype(np.float32)
    else:
        weights = mask.astype(np.float32)
        sums = np.matmul(weights[:, None, :], tokens)[:, 0]
        vectors = sums / np.maximum(weights.sum(axis=1, keepdims=True), np.float32(1e-9))
    return vectors
