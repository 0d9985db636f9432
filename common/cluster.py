"""A Redis Cluster behind the methods of one Redis: each command goes to the node that has its slot.

One plain client per node, so that every promise about a connection (timeouts, cancelling, packing) is that of a
single Redis. redis-py's own cluster client is not used: a failing call to one node closes the connections of all
(which ends every blocking read), a client that has seen all nodes away never comes back, and it sends ASKING on one
connection and the command on another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import redis.asyncio as redis
from redis.asyncio.client import Pipeline
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

Node = tuple[str, int]
#: How often one call may be sent on before its slot counts as unavailable.
REDIRECTS = 5
SCRIPTS = ("EVAL", "EVALSHA")


class SlotUnavailable(RedisConnectionError):
    """The cluster cannot serve this slot now: it is moving to another node, or its node is gone."""


class Cluster(redis.Redis):
    """Sends commands where their keys are; commands without a key to every node."""

    def __init__(self, seeds: Sequence[Node], make: Callable[[str, int], redis.Redis], timeout_s: float) -> None:
        super().__init__(connection_pool=redis.ConnectionPool())  # never connected: the nodes have their own
        self._seeds = list(seeds)
        self._make = make
        self._timeout_s = timeout_s
        self._clients: dict[Node, redis.Redis] = {}
        self._ranges: list[tuple[int, int, Node]] = []  # first slot, last slot, who has them
        self._moved: dict[int, Node] = {}  # what was learnt since the ranges were read
        self._reading = asyncio.Lock()

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command; raises SlotUnavailable where its slot has no node that serves it."""
        slot = slot_of(args)
        if slot is None:
            return await self._everywhere(args, options)

        async def send(client: redis.Redis) -> Any:
            return await client.execute_command(*args, **options)  # type: ignore[no-untyped-call]

        return await self._follow(slot, send, lambda client: _asking(client, args, options))

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> ClusterPipeline:
        """Several commands in few round trips: a transaction on one slot, or any number on any slots."""
        return ClusterPipeline(self, transaction)

    async def run_all(self, commands: list[tuple[Any, Any]]) -> list[Any]:
        """The answers of many commands, each node asked once."""
        by_node: dict[Node, list[int]] = {}
        for place, (args, _) in enumerate(commands):
            by_node.setdefault(await self._node_of(_slot(args)), []).append(place)
        answers: dict[int, Any] = {}
        for places, got in await asyncio.gather(*(self._ask(n, p, commands) for n, p in by_node.items())):
            answers.update(zip(places, got, strict=True))
        return [await self._settled(answers[place], *command) for place, command in enumerate(commands)]

    async def run_transaction(self, commands: list[tuple[Any, Any]]) -> list[Any]:
        """The answers of a transaction; all its keys are of one slot."""

        async def send(client: redis.Redis) -> Any:
            return await _piped(client, commands, transaction=True).execute()

        return list(await self._follow(_slot(commands[0][0]), send, None))

    async def nodes(self) -> list[Node]:
        """The nodes that have slots."""
        if not self._ranges:
            await self._read_layout()
        return sorted({node for _, _, node in self._ranges})

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the connections to all nodes."""
        clients, self._clients = self._clients, {}
        self._forget()
        for client in clients.values():
            await client.aclose()
        await super().aclose(close_connection_pool)

    # -- where commands go

    async def _follow(
        self,
        slot: int,
        send: Callable[[redis.Redis], Awaitable[Any]],
        asking: Callable[[redis.Redis], Awaitable[Any]] | None,
    ) -> Any:
        why: Exception | None = None
        for _ in range(REDIRECTS):
            node = await self._node_of(slot)
            try:
                try:
                    return await send(self._client(node))
                except AskError as moved:
                    if isinstance(moved, MovedError) or asking is None:
                        raise
                    return await asking(self._client(_named(moved, node)))
            except MovedError as moved:
                self._moved[slot] = _named(moved, node)
                why = moved
            except (AskError, ClusterDownError, TryAgainError) as error:
                self._forget()
                raise SlotUnavailable(_text(error)) from error
            except (RedisConnectionError, RedisTimeoutError, OSError):
                self._forget()  # it may have a successor: the next call asks who that is
                raise
        self._forget()
        raise SlotUnavailable(f"sent on {REDIRECTS} times") from why

    async def _everywhere(self, args: Any, options: Any) -> Any:
        clients = [self._client(node) for node in await self.nodes()]
        try:
            answers = await asyncio.gather(*(c.execute_command(*args, **options) for c in clients))  # type: ignore[no-untyped-call]
        except (RedisConnectionError, RedisTimeoutError, OSError):
            self._forget()
            raise
        return answers[0]

    async def _ask(self, node: Node, places: list[int], commands: list[tuple[Any, Any]]) -> tuple[list[int], list[Any]]:
        pipe = _piped(self._client(node), [commands[place] for place in places], transaction=False)
        try:
            return places, list(await pipe.execute(raise_on_error=False))
        except (RedisConnectionError, RedisTimeoutError, OSError):
            self._forget()
            raise

    async def _settled(self, answer: Any, args: Any, options: Any) -> Any:
        # An answer that sends us elsewhere: asked again alone, which follows.
        if isinstance(answer, (AskError, ClusterDownError, TryAgainError)):
            return await self.execute_command(*args, **options)
        return answer

    async def _node_of(self, slot: int) -> Node:
        if not self._ranges:
            await self._read_layout()
        if slot in self._moved:
            return self._moved[slot]
        for first, last, node in self._ranges:
            if first <= slot <= last:
                return node
        self._forget()
        raise SlotUnavailable(f"no node has slot {slot}")

    def _client(self, node: Node) -> redis.Redis:
        if node not in self._clients:
            self._clients[node] = self._make(*node)
        return self._clients[node]

    # -- who has which slots

    def _forget(self) -> None:
        self._ranges, self._moved = [], {}

    async def _read_layout(self) -> None:
        async with self._reading:
            if self._ranges:  # another call has read it meanwhile
                return
            try:
                async with asyncio.timeout(self._timeout_s):
                    self._ranges = await self._layout()
            except TimeoutError:
                raise RedisTimeoutError("no node of the cluster answered in time") from None
            await self._part_with_strangers()

    async def _layout(self) -> list[tuple[int, int, Node]]:
        # All at once: one that hangs must not keep us from those that answer.
        asked = [asyncio.create_task(self._layout_of(node)) for node in {*self._clients, *self._seeds}]
        why: Exception | None = None
        try:
            for answer in asyncio.as_completed(asked):
                try:
                    return await answer
                except (RedisError, OSError) as error:
                    why = error
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        raise SlotUnavailable(f"no node of the cluster answers ({why})") from why

    async def _layout_of(self, node: Node) -> list[tuple[int, int, Node]]:
        rows = await self._client(node).execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
        if not rows:
            raise SlotUnavailable(f"{node[0]}:{node[1]} knows of no node that has slots")
        return [(first, last, (_host(host, node), port)) for first, last, (host, port, *_), *_ in rows]

    async def _part_with_strangers(self) -> None:
        known = {*self._seeds, *(node for _, _, node in self._ranges)}
        for node in self._clients.keys() - known:
            await self._clients.pop(node).aclose()


class ClusterPipeline(Pipeline):
    """Gathers commands as redis-py's pipeline does, and hands them to the cluster."""

    def __init__(self, cluster: Cluster, transaction: bool) -> None:
        super().__init__(cluster.connection_pool, cluster.response_callbacks, transaction, None)
        self._cluster = cluster
        self._all_or_nothing = transaction

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send them; the first error is raised."""
        commands, self.command_stack = list(self.command_stack), []
        if not commands:
            return []
        if self._all_or_nothing:
            return await self._cluster.run_transaction(commands)
        answers = await self._cluster.run_all(commands)
        if raise_on_error:
            for error in answers:
                if isinstance(error, Exception):
                    raise error
        return answers


def slot_of(args: Sequence[Any]) -> int | None:
    """The slot of a command's keys, None when it has none. Our keys have a hash tag, what comes before them has not."""
    if args[0] in SCRIPTS:
        return _key_slot(args[3])
    return next((_key_slot(arg) for arg in args[1:] if isinstance(arg, (str, bytes)) and _tagged(arg)), None)


def _slot(args: Sequence[Any]) -> int:
    slot = slot_of(args)
    if slot is None:
        raise ValueError(f"{args[0]} in a pipeline has no key")
    return slot


def _tagged(arg: str | bytes) -> bool:
    return b"{" in arg if isinstance(arg, bytes) else "{" in arg


def _key_slot(key: str | bytes) -> int:
    return key_slot(key.encode() if isinstance(key, str) else key)


def _piped(client: redis.Redis, commands: list[tuple[Any, Any]], *, transaction: bool) -> Pipeline:
    pipe = client.pipeline(transaction=transaction)
    for args, options in commands:
        pipe.execute_command(*args, **options)
    return pipe


async def _asking(client: redis.Redis, args: Any, options: Any) -> Any:
    # On one connection: ASKING is for the next command only.
    return (await _piped(client, [(("ASKING",), {}), (args, options)], transaction=False).execute())[1]


def _named(error: AskError, asked: Node) -> Node:
    return _host(error.host, asked), error.port


def _host(host: Any, asked: Node) -> str:
    # A node that does not know its own name sends none: it is where we reached it.
    name = host.decode() if isinstance(host, bytes) else host
    return str(name) if name else asked[0]


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
