"""faster-whisper alone, in a process of its own: `python -m ops.bench.direct_transcription FOLDER OPTIONS`.

Loads the model, then answers each line of JSON (`{"file": ...}`) with how long its batched pipeline took for that file.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any

PROMPT_TOKENS = 4  # start, language, task, no time stamps


def main(folder: str, options: dict[str, Any]) -> None:
    """Answer until the input ends."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    loading = {name: options[name] for name in ("device", "compute_type", "cpu_threads") if name in options}
    pipeline = BatchedInferencePipeline(WhisperModel(folder, **loading))
    asked = {
        "language": "en",
        "batch_size": options["batch_size"],
        # It counts the prompt in, and CTranslate2 makes half of the sum at most.
        "max_new_tokens": min(2 * options["max_new_tokens"], 448) - PROMPT_TOKENS,
        "vad_parameters": {"threshold": options["vad_threshold"], "min_silence_duration_ms": 160},
    }
    print("{}", flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        segments, _ = pipeline.transcribe(json.loads(line)["file"], **asked)
        text = "".join(segment.text for segment in segments)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "characters": len(text.strip()), "rss_mib": peak}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
