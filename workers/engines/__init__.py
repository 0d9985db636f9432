"""Engines: the models that job functions run on. Backends are imported only when one is built."""

from __future__ import annotations

from pathlib import Path

from common.catalogue import Model
from workers.engines.protocol import EmbeddingEngine, GenerationEngine, TranscriptionEngine


def generation_engine(model: Model) -> GenerationEngine:
    """The engine that the catalogue names for this model, not started yet."""
    if model.engine == "fake":
        from workers.engines.fake_engine import FakeGenerationEngine

        return FakeGenerationEngine(model)
    if model.engine == "openai":
        from workers.engines.openai_engine import OpenAIGenerationEngine

        return OpenAIGenerationEngine(model)
    from workers.engines.vllm_engine import VllmEngine

    return VllmEngine(model)


def embedding_engine(model: Model, data_dir: Path) -> EmbeddingEngine:
    """The engine that the catalogue names for this model, not started yet; `data_dir` keeps what it makes once."""
    if model.engine == "fake":
        from workers.engines.fake_engine import FakeEmbeddingEngine

        return FakeEmbeddingEngine(model)
    if model.engine == "onnx":
        from workers.engines.onnx_engine import OnnxEngine

        return OnnxEngine(model, data_dir)
    if model.engine == "openai":
        from workers.engines.openai_engine import OpenAIEmbeddingEngine

        return OpenAIEmbeddingEngine(model)
    from workers.engines.sentence_transformers_engine import SentenceTransformersEngine

    return SentenceTransformersEngine(model)


def transcription_engine(model: Model) -> TranscriptionEngine:
    """The engine that the catalogue names for this model, not started yet."""
    if model.engine == "fake":
        from workers.engines.fake_engine import FakeTranscriptionEngine

        return FakeTranscriptionEngine(model)
    from workers.engines.faster_whisper_engine import FasterWhisperEngine

    return FasterWhisperEngine(model)
