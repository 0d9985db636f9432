"""What a request asks of vLLM beyond plain text: structured output, log probabilities, tools, reasoning.

vLLM's own server does this around its engine, so its parts are used here: the parsers that tell reasoning and tool
calls from text, and the way they turn a forced tool call into structured output.

A structured answer that goes on in another delivery has its emitted tokens in the prompt, where vLLM would not show
them to the grammar. `EngineOwner` travels to the engine core and mends that.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from common.catalogue import Model
from common.errors import SettingsInvalid, shown
from workers.engines import vllm_together
from workers.engines.json_schema import with_little_whitespace, with_patterns
from workers.engines.owner import Owner
from workers.engines.protocol import FinishReason, GenerationDelta, GenerationRequest

if TYPE_CHECKING:
    from vllm.v1.request import Request
    from vllm.v1.structured_output import StructuredOutputManager
    from vllm.v1.structured_output.backend_types import StructuredOutputGrammar

RESUMED = "jarvis_resumed_tokens"  # how many tokens at the prompt's end are the answer's, in `extra_args`
LOWEST_LOGPROB = -9999.0  # vLLM's server writes this for minus infinity, which JSON does not have
RANDOM_CALL_ID = "chatcmpl-tool-"  # what vLLM's parsers make up where the model gives its calls no ids
# Without whitespace where the grammar does not need it: a small model can fill any length with blanks.
STRUCTURED = {"backend": "xgrammar", "disable_any_whitespace": True}


class Parsers:
    """The parsers that a catalogue entry names, for one loaded model."""

    def __init__(self, llm: Any, model: Model) -> None:
        from vllm.parser import ParserManager

        self._llm = llm
        try:
            self._class = ParserManager.get_parser(
                tool_parser_name=model.tool_parser,
                reasoning_parser_name=model.reasoning_parser,
                enable_auto_tools=model.tool_parser is not None,
                model_name=model.weights,
                tokenizer=llm.get_tokenizer(),
            )
        except TypeError as error:  # the tokenizer lacks what a parser looks for
            raise SettingsInvalid(f"{model.place}: {model.alias}: {error}") from error

    def reading(self, request_id: str, request: GenerationRequest, prompt_ids: list[int]) -> Reading | None:
        """How to read a conversation's answer; None where it is text and nothing else."""
        if self._class is None or request.messages is None:
            return None
        if self._class.reasoning_parser_cls is None and not request.tools:
            return None
        return Reading(self._llm, self._class, request_id, request, prompt_ids)


def unknown_parsers(model: Model) -> Iterator[tuple[str, str]]:
    """Each key of the entry that names a parser which vLLM does not have, with those that it has."""
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    for key, manager in (("tool_parser", ToolParserManager), ("reasoning_parser", ReasoningParserManager)):
        name, known = getattr(model, key), manager.list_registered()
        if name is not None and name not in known:
            yield key, f"{key} is {shown(name)}; vLLM has {', '.join(sorted(known))}"


class Reading:
    """Tells reasoning and tool calls from text in one answer."""

    def __init__(
        self, llm: Any, parser: Any, request_id: str, request: GenerationRequest, prompt_ids: list[int]
    ) -> None:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.sampling_params import StructuredOutputsParams

        tools: dict[str, Any] = {}
        if request.tools:
            tools = {"tools": request.tools, "tool_choice": request.tool_choice or "auto"}
            tools["parallel_tool_calls"] = request.parallel_tool_calls
        structured = StructuredOutputsParams(**request.structured) if request.structured else None
        chat = ChatCompletionRequest(messages=request.messages, structured_outputs=structured, **tools)
        if request.tool_choice not in (None, "auto", "none"):
            for tool in chat.tools:
                # A call that is forced is held to its arguments' schema, unless the tool says otherwise.
                tool.function.strict = tool.function.strict is not False
        self._parser = parser(llm.get_tokenizer(), chat.tools, model_config=llm.model_config)
        # Special tokens may be what a parser looks for; a call that is required becomes structured output.
        self.chat = self._parser.adjust_request(chat)
        self._request_id = request_id
        self._prompt_ids = prompt_ids
        self._resumed_ids = request.resume_ids
        self._named = isinstance(request.tool_choice, dict)
        self._called = False

    @property
    def engine_arguments(self) -> dict[str, Any]:
        """What the engine is told: whether the prompt already ends the reasoning, which has no structure."""
        return {"reasoning_ended": self.chat.resolve_reasoning_ended(self._parser, self._prompt_ids)}

    def adjust(self, params: Any) -> None:
        """Write into vLLM's sampling parameters what the parser needs."""
        params.structured_outputs = _mended(self.chat.extract_structured_outputs())
        params.skip_special_tokens = self.chat.skip_special_tokens

    async def read(self, deltas: AsyncGenerator[GenerationDelta]) -> AsyncGenerator[GenerationDelta]:
        """The same deltas with reasoning and tool calls apart from the text."""
        ids = self._resumed_ids
        async with aclosing(deltas):
            async for delta in deltas:
                yield self._read(delta, [*ids, *delta.token_ids])
                ids = []

    def _read(self, delta: GenerationDelta, ids: list[int]) -> GenerationDelta:
        finished = delta.finish_reason is not None
        message = self._parser.parse_delta(delta.text, ids, self.chat, self._prompt_ids, finished=finished)
        text = (message.content or "") if message else ""
        reasoning = (message.reasoning or "") if message else ""
        calls = [self._piece(call) for call in message.tool_calls] if message and message.tool_calls else None
        self._called = self._called or bool(calls)
        return GenerationDelta(
            text,
            delta.token_ids,
            self._reason(delta),
            delta.prompt_tokens,
            reasoning=reasoning,
            tool_calls=calls,
            logprobs=delta.logprobs,
        )

    def _reason(self, delta: GenerationDelta) -> FinishReason | None:
        # As OpenAI does it: a call that was asked for by name ends with "stop".
        called = self._called and not self._named and delta.finish_reason == "stop"
        return "tool_calls" if called else delta.finish_reason

    def _piece(self, call: Any) -> dict[str, Any]:
        function: dict[str, Any] = {"arguments": (call.function and call.function.arguments) or ""}
        if not (call.function and call.function.name):
            return {"index": call.index, "function": function}
        function["name"] = call.function.name
        # The same id in every delivery: a made-up one would change when the answer is read again.
        made_up = call.id is None or call.id.startswith(RANDOM_CALL_ID)
        call_id = f"call_{self._request_id}_{call.index}" if made_up else call.id
        return {"index": call.index, "id": call_id, "type": "function", "function": function}


def engine_arguments(request: GenerationRequest, reading: Reading | None) -> dict[str, Any]:
    """What `AsyncLLM.generate` is told of a structured request: whether its reasoning has ended before it begins."""
    if reading is not None:
        return reading.engine_arguments
    return {"reasoning_ended": True} if request.structured else {}


def adjust(params: Any, request: GenerationRequest, reading: Reading | None) -> None:
    """Write structured output, and what a parser needs, into vLLM's sampling parameters."""
    if reading is not None:
        reading.adjust(params)
    elif request.structured:
        from vllm.sampling_params import StructuredOutputsParams

        params.structured_outputs = _mended(StructuredOutputsParams(**request.structured))


def _mended(structured: Any) -> Any:
    if structured is not None and structured.json is not None:
        schema = json.loads(structured.json) if isinstance(structured.json, str) else structured.json
        structured.json = with_patterns(schema)
    elif structured is not None and structured.structural_tag is not None:
        tag = with_little_whitespace(with_patterns(json.loads(structured.structural_tag)))
        structured.structural_tag = json.dumps(tag)
    return structured


def logprobs_of(llm: Any, token_ids: list[int], logprobs: list[Any], count: int) -> list[dict[str, Any]]:
    """The log probability of each token and of the `count` likeliest at its place, as OpenAI writes them."""
    tokenizer = llm.get_tokenizer()
    entries = []
    for token_id, place in zip(token_ids, logprobs, strict=True):
        # The sampled token stands first, wherever it ranks.
        likeliest = sorted((one.rank, other) for other, one in place.items() if one.rank <= count)
        tops = [_logprob(tokenizer, other, place[other]) for _, other in likeliest]
        entries.append({**_logprob(tokenizer, token_id, place[token_id]), "top_logprobs": tops})
    return entries


def _logprob(tokenizer: Any, token_id: int, one: Any) -> dict[str, Any]:
    # An answer that goes on is not detokenized by vLLM.
    token = tokenizer.decode([token_id]) if one.decoded_token is None else one.decoded_token
    return {"token": token, "logprob": max(one.logprob, LOWEST_LOGPROB), "bytes": list(token.encode())}


class EngineOwner(Owner):
    """The Owner that also makes the engine core's grammars resumable, and requests that come together begin so."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if os.getpid() != self.pid:
            resume_grammars()
            vllm_together.wait_for_followers()


def resume_grammars() -> None:
    """Have the structured output of this process lead each new grammar over the tokens that it resumes after.

    vLLM has no call for it: a request's grammar starts at the first token after its prompt.
    """
    from vllm.v1.structured_output import StructuredOutputManager

    create = StructuredOutputManager._create_grammar
    if create.__module__ == __name__:
        return  # unpickled more than once here

    def create_and_resume(manager: StructuredOutputManager, request: Request) -> StructuredOutputGrammar:
        grammar = create(manager, request)
        count = (request.sampling_params.extra_args or {}).get(RESUMED, 0)
        if count:
            _lead(manager, request, grammar, request.prompt_token_ids[-count:])
        return grammar

    StructuredOutputManager._create_grammar = create_and_resume


def _lead(
    manager: StructuredOutputManager, request: Request, grammar: StructuredOutputGrammar, tokens: list[int]
) -> None:
    # As the manager's accept_tokens does for sampled tokens: those of the reasoning before the answer are not its.
    start, _ = manager._get_constraint_bounds(request, tokens, spec_tokens_committed=True)
    if start > len(tokens):
        return
    request.structured_output_request.reasoning_ended = True
    if not grammar.accept_tokens(request.request_id, tokens[start:]):
        raise ValueError("the tokens emitted before do not match the structure that was asked for")
