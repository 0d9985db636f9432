"""The job function of `embedding`: a list of texts to a list of vectors, batched with whatever else waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from common.catalogue import Model
from common.cost import priced
from common.errors import JobFailed
from common.jobs import ClaimedJob, JobResult
from common.settings import Settings
from common.vectors import Vectors
from workers.engines import embedding_engine
from workers.serving import revived, starter, worker_settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


async def embedding(ctx: dict[str, Any], job: ClaimedJob) -> JobResult:
    """Run one embedding job."""
    spec = job.spec
    params = {**ctx["model"].defaults, **spec.params}
    async with revived(ctx):
        texts = prompted(spec.input["texts"], ctx["model"], params.get("input_type"))
        batch = await ctx["engine"].embed(texts, params.get("truncate", True), low=job.lane == "low")
    vectors = shaped(batch.vectors, params.get("dimensions"), params.get("normalize", False))
    size = int(vectors.shape[1])
    output: dict[str, Any] = {"dimensions": size}
    if batch.truncated:
        output["truncated"] = batch.truncated
    result = JobResult(
        output,
        {"prompt_tokens": batch.prompt_tokens, "total_tokens": batch.prompt_tokens},
        vectors=Vectors(vectors.astype("<f4", copy=False).tobytes(), size, params.get("encoding_format", "float")),
    )
    return priced(ctx["model"].cost, result)


def prompted(texts: list[str], model: Model, input_type: str | None) -> list[str]:
    """The texts as the model reads them: with the catalogue's prompt of this type, or its default one, before each."""
    name = input_type or model.default_prompt
    if name is None:
        return texts
    prompt = model.prompts.get(name)
    if prompt is None:  # the catalogue has changed since the job was accepted
        allowed = ", ".join(model.prompts) or "none"
        raise JobFailed("invalid_request", f"input_type {name!r} is not one of {model.alias}'s: {allowed}")
    return [prompt + text for text in texts]


def shaped(vectors: NDArray[np.float32], dimensions: int | None, normalize: bool) -> NDArray[np.float32]:
    """The vectors cut to their first `dimensions`, which makes their length 1 again, as `normalize` does."""
    if dimensions is not None:
        return unit(vectors[:, :dimensions])
    return unit(vectors) if normalize else vectors


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors at length 1; one of length 0 stays as it is. Models that end in Normalize need no help."""
    import numpy as np

    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = vectors / np.maximum(lengths, np.float32(1e-12))
    return scaled


on_startup = starter("embedding", lambda model, settings: embedding_engine(model, settings.data_dir))


def settings_for(model: Model, settings: Settings) -> dict[str, Any]:
    """The worker's settings for one model, by keyword."""
    return worker_settings(embedding, on_startup, model, settings)
