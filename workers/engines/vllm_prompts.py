"""Prompts and conversations as the tokens that vLLM takes.

vLLM hands each to a thread, so that a long one does not stop the event loop. A short one takes a twentieth of a
millisecond, the way to the thread and back with a busy loop several: of requests that come together, the first tokens
would wait for that one after the other. So short ones are made into tokens where they stand.
"""

from __future__ import annotations

import asyncio
from copy import deepcopy
from typing import Any

from workers.engines.protocol import GenerationRequest

#: Characters of a prompt, or of a conversation's texts together, that the event loop may be stopped for.
SHORT = 4_000


class Prompts:
    """Those of one loaded model."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._in_threads = 0

    async def rendered(self, request: GenerationRequest) -> Any:
        """vLLM's input, with `prompt_token_ids`. Raises what vLLM raises."""
        # A thread that is at it has the tokenizer for itself: the loop would wait for it.
        if not self._in_threads and _is_short(request):
            return self._here(request)
        elsewhere = asyncio.ensure_future(self._elsewhere(request))
        self._in_threads += 1
        elsewhere.add_done_callback(self._through)
        # Its thread goes on though the job is cancelled.
        return await asyncio.shield(elsewhere)

    def _through(self, elsewhere: asyncio.Future[Any]) -> None:
        self._in_threads -= 1
        if not elsewhere.cancelled():
            elsewhere.exception()  # it is raised to who waits, if he still does

    def _here(self, request: GenerationRequest) -> Any:
        renderer = self._llm.renderer
        if request.messages:
            return renderer.render_chat(*_conversation(request))[1][0]
        return renderer.render_cmpl([self._parsed(request)])[0]

    async def _elsewhere(self, request: GenerationRequest) -> Any:
        renderer = self._llm.renderer
        if request.messages:
            return (await renderer.render_chat_async(*_conversation(request)))[1][0]
        return (await renderer.render_cmpl_async([self._parsed(request)]))[0]

    def _parsed(self, request: GenerationRequest) -> Any:
        from vllm.renderers.inputs.preprocess import parse_model_prompt

        return parse_model_prompt(self._llm.model_config, request.prompt or "")


def _conversation(request: GenerationRequest) -> tuple[list[Any], Any]:
    from vllm.renderers import ChatParams

    params = ChatParams(chat_template_kwargs={"add_generation_prompt": True, "tools": request.tools})
    # A copy: vLLM reads the arguments of earlier calls where they stand.
    return [deepcopy(request.messages)], params


def _is_short(request: GenerationRequest) -> bool:
    if not request.messages:
        return len(request.prompt or "") <= SHORT
    if request.tools:  # as long as their schemas
        return False
    length = 0
    for message in request.messages:
        text = message.get("content")
        if not isinstance(text, str):  # parts, of which one may be an image
            return False
        length += len(text)
    return length <= SHORT
