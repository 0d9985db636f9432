"""Engines: the models that job functions run on. Backends are imported only when one is built."""

from __future__ import annotations

from common.catalogue import Model
from workers.engines.protocol import EmbeddingEngine, GenerationEngine


def generation_engine(model: Model) -> GenerationEngine:
    """The engine that the catalogue names for this model, not started yet."""
    if model.engine == "fake":
        from workers.engines.fake_engine import FakeGenerationEngine

        return FakeGenerationEngine(model)
    from workers.engines.vllm_engine import VllmEngine

    return VllmEngine(model)


def embedding_engine(model: Model) -> EmbeddingEngine:
    """The engine that the catalogue names for this model, not started yet."""
    if model.engine == "fake":
        from workers.engines.fake_engine import FakeEmbeddingEngine

        return FakeEmbeddingEngine(model)
    from workers.engines.sentence_transformers_engine import SentenceTransformersEngine

    return SentenceTransformersEngine(model)
