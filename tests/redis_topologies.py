"""Several redis-servers as one: a cluster of masters, and a master that sentinels watch over."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from tests.redis_server import RedisServer, free_port

SLOTS = 16_384
MASTER = "jarvis"
DEADLINE_S = 20.0


class RedisCluster:
    """A cluster of masters that share the slots evenly; when `replicated`, the first has a replica."""

    def __init__(self, folder: Path, size: int = 3, *, replicated: bool = False) -> None:
        self.nodes = [RedisServer(folder / str(i), config=self._config()) for i in range(size)]
        self.replica = RedisServer(folder / "replica", config=self._config()) if replicated else None

    @staticmethod
    def _config() -> dict[str, str]:
        return {
            "cluster-enabled": "yes",
            "cluster-port": str(free_port()),
            "cluster-node-timeout": "1000",
            "cluster-require-full-coverage": "no",
            "repl-diskless-sync-delay": "0",
        }

    @property
    def url(self) -> str:
        """The address of the cluster: two of its nodes, the rest are found."""
        return "redis-cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])

    def start(self) -> None:
        """Start all nodes, give each its slots, and return once all agree."""
        for number, node in enumerate(self.nodes):
            node.start()
            first, last = number * SLOTS // len(self.nodes), (number + 1) * SLOTS // len(self.nodes) - 1
            with node.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        with self.nodes[0].client() as client:
            for node in self.nodes[1:]:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, node.config["cluster-port"])
        wait_until(lambda: all(self._agrees(node) for node in self.nodes), "the cluster agrees")
        if self.replica is not None:
            self._replicate(self.replica)

    def stop(self) -> None:
        """End all nodes."""
        for node in (*self.nodes, *filter(None, [self.replica])):
            node.resume()
            node.stop()

    def replica_level(self) -> bool:
        """Whether the replica has all that its master wrote."""
        with self.nodes[0].client() as client:
            told: Any = client.info("replication")
        return bool(told["connected_slaves"] == 1 and told["slave0"]["offset"] == told["master_repl_offset"])

    def owner(self, slot: int) -> int:
        """The number of the node that has a slot."""
        with self.nodes[0].client() as client:
            rows: Any = client.execute_command("CLUSTER", "SLOTS")
        port = next(row[2][1] for row in rows if row[0] <= slot <= row[1])
        return next(i for i, node in enumerate(self.nodes) if node.port == port)

    def begin_move(self, slot: int, source: int, target: int) -> None:
        """Open a slot for moving, as an operator's resharding does."""
        with self.nodes[source].client() as giver, self.nodes[target].client() as taker:
            taker.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", _name_of(giver))
            giver.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", _name_of(taker))

    def move_keys(self, slot: int, source: int, target: int, count: int = 10) -> int:
        """Move at most so many keys of a slot that is open; returns how many."""
        with redis.Redis(port=self.nodes[source].port) as giver:
            keys: Any = giver.execute_command("CLUSTER", "GETKEYSINSLOT", slot, count)
            if keys:
                giver.execute_command("MIGRATE", "127.0.0.1", self.nodes[target].port, "", 0, 5000, "KEYS", *keys)
            return len(keys)

    def end_move(self, slot: int, target: int) -> None:
        """Tell every node who has the slot now, the new owner first."""
        with self.nodes[target].client() as taker:
            name = _name_of(taker)
        for node in (self.nodes[target], *self.nodes):
            with node.client() as client:
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", name)

    def _replicate(self, replica: RedisServer) -> None:
        replica.start()
        with self.nodes[0].client() as master, replica.client() as client:
            name = _name_of(master)
            client.execute_command(
                "CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port, self.nodes[0].config["cluster-port"]
            )
            wait_until(lambda: name in _text(client), "the replica knows its master")
            client.execute_command("CLUSTER", "REPLICATE", name)
        wait_until(lambda: all(self._known(replica, node) for node in self.nodes), "all nodes know the replica")
        wait_until(self.replica_level, "the replica follows")

    def _known(self, replica: RedisServer, node: RedisServer) -> bool:
        with node.client() as client:
            return any(f":{replica.port}@" in line and "slave" in line for line in _text(client).splitlines())

    def _agrees(self, node: RedisServer) -> bool:
        with node.client() as client:
            told: Any = client.execute_command("CLUSTER", "INFO")
            rows: Any = client.execute_command("CLUSTER", "SLOTS")
        return "cluster_state:ok" in told and len(rows) == len(self.nodes)


class Sentinels:
    """A master with replicas, and sentinels that replace it when it dies. They lie in one folder, on loopback."""

    def __init__(self, folder: Path, *, replicas: int = 2, watchers: int = 3, config: dict[str, str]) -> None:
        self.servers = [RedisServer(folder / f"redis{i}", aof=True, config=config) for i in range(replicas + 1)]
        self.watchers = [SentinelProcess(folder / f"sentinel{i}", self.servers[0].port) for i in range(watchers)]

    @property
    def url(self) -> str:
        """The address for a client."""
        nodes = ",".join(f"127.0.0.1:{watcher.port}" for watcher in self.watchers)
        return f"redis-sentinel://{nodes}/{MASTER}/0"

    def start(self) -> None:
        """Start all and return once the replicas follow and the sentinels know them and each other."""
        for server in self.servers:
            server.start()
        for replica in self.servers[1:]:
            with replica.client() as client:
                client.replicaof("127.0.0.1", str(self.servers[0].port))
        for watcher in self.watchers:
            watcher.start()
        wait_until(self._all_known, "the sentinels know all")

    def stop(self) -> None:
        """End all."""
        for process in (*self.watchers, *self.servers):
            process.resume()
            process.stop()

    def master(self) -> RedisServer:
        """The server that the first sentinel names."""
        with self.watchers[0].client() as client:
            answer: Any = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
        return next(server for server in self.servers if server.port == int(answer[1]))

    def replicas_level(self) -> bool:
        """Whether every replica that follows has all that the master wrote."""
        with self.master().client() as client:
            told: Any = client.info("replication")
        followers = [told[f"slave{i}"] for i in range(told["connected_slaves"])]
        return bool(followers) and all(one["offset"] == told["master_repl_offset"] for one in followers)

    def _all_known(self) -> bool:
        return self.replicas_level() and all(self._knows(watcher) for watcher in self.watchers)

    def _knows(self, watcher: SentinelProcess) -> bool:
        with watcher.client() as client:
            state: Any = client.sentinel_master(MASTER)
        others = len(self.watchers) - 1
        return (state["num-slaves"], state["num-other-sentinels"]) == (len(self.servers) - 1, others)


class SentinelProcess(RedisServer):
    """One sentinel, which with one other decides that the master is dead."""

    def __init__(self, folder: Path, master_port: int, dead_after_ms: int = 1000) -> None:
        super().__init__(folder)
        self._lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {folder}",
            "logfile redis.log",
            f"sentinel monitor {MASTER} 127.0.0.1 {master_port} 2",
            f"sentinel down-after-milliseconds {MASTER} {dead_after_ms}",
            f"sentinel failover-timeout {MASTER} 10000",
        ]

    def command(self) -> list[str]:
        """A sentinel rewrites its file: it lies in its folder."""
        file = self.folder / "sentinel.conf"
        if not file.exists():
            file.write_text("\n".join(self._lines) + "\n")
        return [self.program, str(file), "--sentinel"]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not in {DEADLINE_S} s: {what}")
        time.sleep(0.02)


def _name_of(client: redis.Redis) -> str:
    return str(client.cluster("MYID"))


def _text(client: redis.Redis) -> str:
    told: Any = client.execute_command("CLUSTER", "NODES")  # type: ignore[no-untyped-call]
    return str(told)
