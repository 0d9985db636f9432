"""The benchmarks' own arithmetic, tables, client and wiring; that the figures are real is seen by running them."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from common.catalogue import Catalogue, Model
from common.keys import Keys
from common.results import Results
from ops.bench import __main__ as command
from ops.bench import (
    alone,
    embedding,
    fairness,
    fault,
    figures,
    flat,
    generation,
    harness,
    hotspots,
    loads,
    picture,
    quantization,
    queues,
    report,
    retrieval,
    submit,
    vllm_server,
)
from ops.bench.callers import press
from ops.bench.client import Connection
from ops.bench.direct import in_turn
from ops.bench.formation import write_catalogue
from ops.bench.machine import describe
from ops.bench.noop import noop, payload
from ops.bench.servers import BenchFailed, RedisServer, until

ROUNDS: list[dict[str, dict[str, Any]]] = [
    {"ours": {"jobs_s": 100.0}, "a": {"jobs_s": 50.0}, "b": {"jobs_s": 80.0}},
    {"ours": {"jobs_s": 90.0}, "a": {"jobs_s": 30.0}},
    {"ours": {"jobs_s": 200.0}, "a": {"jobs_s": 50.0, "kind": "native", "ok": True}},
]


# --- figures


def test_a_ratio_is_the_median_over_rounds_of_ours_over_the_best_of_the_same_round() -> None:
    assert figures.ratio(ROUNDS, "ours", "jobs_s", ["a", "b"]) == 3.0  # of 1.25, 3 and 4


def test_a_peer_that_was_never_measured_gives_no_ratio() -> None:
    ratio = figures.ratio(ROUNDS, "ours", "jobs_s", ["bullmq"])
    assert ratio is None
    assert figures.last_line({"vs_bullmq": ratio, "vs_a": 3.0}) == "vs_bullmq=none vs_a=3.00"


def test_medians_are_taken_over_the_rounds_that_have_the_figure() -> None:
    assert figures.medians(ROUNDS) == {"ours": {"jobs_s": 100.0}, "a": {"jobs_s": 50.0}, "b": {"jobs_s": 80.0}}


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert figures.percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert figures.percentile([float(n) for n in range(100)], 99) == 99.0


def test_how_latencies_spread_is_kept_as_one_value_for_each_percent_and_pooled_over_the_rounds() -> None:
    fast, slow = figures.percentiles([1.0] * 10), figures.percentiles([3.0] * 10)
    assert (fast["n"], fast["p50"], fast["max"], len(fast["latency_ms"])) == (10, 1.0, 1.0, 101)
    together = figures.pooled([{"ours": fast}, {"ours": slow}, {"other": slow}], "ours")
    assert (together[0], together[100]) == (1.0, 3.0)
    assert figures.pooled([{"ours": fast}], "bullmq") == []


# --- tables


def test_the_queue_table_has_a_row_for_every_peer_and_a_dash_for_what_was_not_measured() -> None:
    table = report.queue_table({"medians": figures.medians(ROUNDS), "rounds": ROUNDS, "idle": {}})
    assert "| ours | 100 | - | " in table
    assert "| 90-200 |" in table


def test_a_result_file_becomes_a_section_with_command_machine_and_ratios(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = {
        "benchmark": "generation",
        "command": "python -m ops.bench generation",
        "machine": describe(),
        "rounds": [{"api": {"tokens_s": 10.0}}],
        "medians": {"api": {"tokens_s": 10.0}},
        "ratios": {"vs_direct": 0.95, "vs_server": None},
        "errors": ["round 1: server: it died\nand more"],
    }
    file = tmp_path / "generation.json"
    file.write_text(json.dumps(document))
    assert command.main(["report", str(file)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("### generation\n\n`python -m ops.bench generation`\n\nmachine: ")
    assert "`vs_direct=0.95 vs_server=none`" in printed
    assert "Not measured: round 1: server: it died." in printed


def test_a_result_that_brings_its_own_tables_is_shown_with_them() -> None:
    columns: tuple[report.Column, ...] = (("jobs_s", "jobs/s", 1),)
    document = {"benchmark": "latency", "tables": [report.as_table(columns, {"queue": {"jobs_s": 1.25}}, "When idle")]}
    assert report.tables(document) == "When idle:\n\n|  | jobs/s |\n|---|---:|\n| queue | 1.2 |"


def test_sections_stand_in_the_page_between_its_marks_in_place_of_what_stood_there() -> None:
    first, last = report.MARKS
    assert report.replaced(f"a\n{first}\nold\n{last}\nb\n", "new") == f"a\n{first}\n\nnew\n\n{last}\nb\n"
    with pytest.raises(BenchFailed, match="no line"):
        report.replaced(f"a\n{first}\nold\n", "new")


# --- the picture


def measured() -> list[dict[str, Any]]:
    """Results of `queue` and `flat`, as small as the picture can be made of."""
    rounds = [
        {name: {"jobs_s": jobs_s, **figures.percentiles([1.0, 2.0, 9.0])} for name, jobs_s in row.items()}
        for row in ({"bullmq": 3_000.0, "limit-tasks": 9_000.0, "ours": 6_000.0, "ours-2-workers": 8_000.0},) * 2
    ]
    levels = [{"1,000 waiting": {"cpu_us": 70.0 + n}, "1,000,000 waiting": {"cpu_us": 71.0 + n}} for n in range(3)]
    queue = {"benchmark": "queue", "rounds": rounds, "medians": figures.medians(rounds), "machine": describe()}
    return [queue, {"benchmark": "flat", "rounds": levels, "waiting": figures.medians(levels)}]


def test_the_picture_has_ours_first_then_the_fastest_and_last_the_bound() -> None:
    assert [row.label for row in picture.rows_of(measured()[0])] == ["Jarvis", "BullMQ (Node)", "a bare loop, no queue"]


def test_the_picture_is_the_same_bytes_for_the_same_figures() -> None:
    first, second = picture.draw(measured()), picture.draw(measured())
    assert first == second
    assert ">6,000</text>" in first
    assert ">1 M</text>" in first
    assert "<dc:date>" not in first


def test_without_a_queue_result_there_is_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "flat.json"
    file.write_text(json.dumps(measured()[1]))
    assert command.main(["draw", str(file), "--out", str(tmp_path / "queue.svg")]) == 1
    assert "no result of `queue`" in capsys.readouterr().err


# --- the command line


def test_the_command_of_a_result_does_not_say_where_the_result_was_written() -> None:
    told = command.command_of(["queue", "--json", "here/queue.json", "--rounds", "2", "--json=x"])
    assert told == "python -m ops.bench queue --rounds 2"


# --- the client


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that gives these answers to the requests of one connection, in order, and keeps the requests."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            requests.append(head + await reader.readexactly(length))
            writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], requests


def whole(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


def chunked(*chunks: bytes) -> bytes:
    parts = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + parts + b"0\r\n\r\n"


async def test_one_connection_is_used_for_call_after_call() -> None:
    async with answering(whole(b'{"a": 1}'), chunked(b'{"a"', b": 2}")) as (port, requests), Connection(port) as one:
        assert await one.call("POST", "/v1/jobs", {"x": 1}, {"prefer": "wait=1"}) == {"a": 1}
        assert await one.call("GET", "/v1/jobs/j") == {"a": 2}
    assert b"prefer: wait=1" in requests[0]
    assert requests[0].endswith(b'{"x": 1}')


async def test_events_come_whole_however_the_server_cuts_them() -> None:
    stream = chunked(b"id: 1\nevent: tok", b"en\ndata: {}\n\n: keep-alive\n\nid: 2\nda", b"ta: x: y\n\n")
    async with answering(stream) as (port, _), Connection(port) as one:
        events = [event async for event in one.events("GET", "/events")]
    assert events == [{"id": "1", "event": "token", "data": "{}"}, {"id": "2", "data": "x: y"}]


async def test_a_refusal_fails_the_measurement_and_says_what_was_refused() -> None:
    async with answering(whole(b"no such model", "404 Not Found")) as (port, _), Connection(port) as one:
        with pytest.raises(BenchFailed, match=r"/v1/jobs answered 404: no such model"):
            await one.call("POST", "/v1/jobs", {})


async def test_callers_send_their_next_request_when_the_answer_has_come_whole() -> None:
    accepted = whole(b'{"id": 1}', "202 Accepted")
    halves = accepted[:20], accepted[20:]
    async with answering(halves[0] + halves[1], *[accepted] * 50) as (port, requests):
        load = await press(port, "/v1/jobs", b"{}", callers=1, seconds=0.5)
    assert load.requests == len(load.times_ms) == len(requests) == 51
    assert requests[-1].endswith(b"\r\n\r\n{}")


async def test_callers_stop_at_the_first_refusal_and_say_what_it_was() -> None:
    async with answering(whole(b"full", "429 Too Many Requests")) as (port, _):
        with pytest.raises(BenchFailed, match="429 Too Many"):
            await press(port, "/v1/jobs", b"{}", callers=1, seconds=5)


# --- models and prompts


def write_model(folder: Path, special: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 0, "hidden_size": 8}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": special}))
    return folder


def test_the_endless_copy_of_a_model_ends_with_a_token_it_never_says(tmp_path: Path) -> None:
    tokens = [{"id": 0, "content": "<end>", "special": True}, {"id": 5, "content": "<user>", "special": True}]
    model = write_model(tmp_path / "model", tokens)
    copy = generation.endless(model, tmp_path / "copy")
    assert json.loads((copy / "config.json").read_text()) == {"eos_token_id": 5, "hidden_size": 8}
    assert json.loads((copy / "generation_config.json").read_text()) == {"eos_token_id": 5}
    assert json.loads((copy / "tokenizer_config.json").read_text()) == {"eos_token": "<user>"}
    assert json.loads((model / "config.json").read_text())["eos_token_id"] == 0


def test_a_model_without_another_special_token_is_copied_as_it_is(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", [{"id": 0, "content": "<end>", "special": True}])
    copy = generation.endless(model, tmp_path / "copy")
    assert json.loads((copy / "config.json").read_text())["eos_token_id"] == 0


def test_a_model_written_to_a_catalogue_is_read_back_the_same(tmp_path: Path) -> None:
    options = {"enforce_eager": True, "dtype": "bfloat16", "max_num_seqs": 32}
    folder = write_model(tmp_path / "model", [])
    model = Model("demo", "generation", "vllm", str(folder), 512, 64, {"temperature": 0.5}, options)
    read = Catalogue.load(write_catalogue(tmp_path, model)).get("generation", "demo")
    assert (read.weights_path(), read.slots, read.defaults, read.options) == (
        str(folder),
        64,
        {"temperature": 0.5},
        options,
    )


def test_an_option_that_a_catalogue_cannot_hold_is_refused(tmp_path: Path) -> None:
    model = Model("demo", "generation", "fake", "", 512, 64, {}, {"words": ["a"]})
    with pytest.raises(BenchFailed, match="no plain value"):
        write_catalogue(tmp_path, model)


def test_all_prompts_differ_however_many_are_asked_for() -> None:
    assert len(set(loads.prompts(200))) == 200


async def test_a_load_keeps_as_many_prompts_going_as_it_says_and_asks_each_once() -> None:
    going, most, asked = 0, 0, []

    async def ask(prompt: str) -> str:
        nonlocal going, most
        going += 1
        most = max(most, going)
        asked.append(prompt)
        await asyncio.sleep(0)
        going -= 1
        return prompt

    prompts = loads.prompts(10)
    assert sorted(await in_turn(prompts, 3, ask)) == sorted(asked) == sorted(prompts)
    assert most == 3


def test_the_server_gets_the_engines_arguments_as_flags() -> None:
    flags = vllm_server.flags({"max_num_seqs": 256, "enforce_eager": True, "use_tqdm": False})
    assert flags == ["--max-num-seqs", "256", "--enforce-eager", "--no-use-tqdm"]


def test_the_time_added_to_the_first_token_is_a_difference_and_the_speed_a_ratio() -> None:
    one = {"tokens_s": 90.0, "stream_tokens_s": 80.0, "first_token_ms": 15.0}
    alone_ = {"tokens_s": 100.0, "stream_tokens_s": 100.0, "first_token_ms": 8.0}
    found = generation.ratios([{"api": one, "direct": alone_}])
    assert figures.last_line(found) == (
        "vs_direct=0.90 vs_server=none ttft_added_ms=7.00 vs_direct_streams=0.80 vs_server_streams=none"
    )


def test_the_retrieval_task_is_perfect_only_when_each_right_answer_is_first() -> None:
    questions, answers = retrieval.pairs()
    assert len(set(questions)) == len(answers) > 100
    rows = [[1.0, 0.0, 0.1], [0.0, 2.0, 0.1], [1.0, 1.0, 0.1]]
    assert retrieval.ndcg(rows, rows) == pytest.approx(1)
    assert retrieval.ndcg(rows, [rows[1], rows[0], rows[2]]) < 0.7
    assert retrieval.ndcg(rows, [rows[1], rows[0], rows[2]], best=1) == pytest.approx(1 / 3)


def test_no_two_texts_of_the_embedding_benchmark_are_the_same() -> None:
    assert len(set(embedding.texts(100))) == 100


# --- the queue benchmark


async def test_the_no_op_job_says_which_job_it_was() -> None:
    done = await noop({}, **payload(7))
    assert (done["ok"], done["i"]) == (True, 7)
    assert 190 <= len(json.dumps(payload(7))) <= 220


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Path]:
    """A folder with the shape of the peers' harness; its modules are forgotten afterwards."""
    registry = """
        ROOT = VENVS = NODE_MODULES = {folder!r}
        def zero(reply, n): return reply == 0
        def P(script, venv, done, n, env=None, note=""): return dict(script=script, venv=venv, done=done, n=n, env=env)
        PEERS = {{"saq": P("saq.py", "saq", None, (1, 1)), "bullmq": P("b.js", "node", None, (1, 1)),
                 "limit-tasks": P("l.py", "limit", None, (1, 1))}}
    """
    lines = registry.format(folder=str(tmp_path)).splitlines()
    (tmp_path / "registry.py").write_text("\n".join(line[8:] for line in lines))
    (tmp_path / "rig.py").write_text(
        f"LOGS = {str(tmp_path / 'logs')!r}\n"
        "class Resp:\n    def __init__(self, port): pass\n"
        "def argv(name, *args): return [name, *args]\n"
        "def call(name, port, *args, **options): return {'ms': [1.0, 2.0, 3.0]}\n"
    )
    (tmp_path / "bench.py").write_text(
        "import rig\ndef versions(): return {}\n"
        "def latency(name, red, scale): return {'p50': rig.call(name, red.port, 'latency')['ms'][1]}\n"
    )
    yield tmp_path
    for name in ("registry", "rig", "bench"):
        sys.modules.pop(name, None)
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path)]


def test_ours_joins_the_harness_and_the_peers_stay_as_they_are(peers: Path) -> None:
    found = harness.find(peers)
    assert found is not None
    assert found.rig.argv("saq", "worker") == ["saq", "worker"]
    assert found.rig.argv("ours", "latency", "--n", 5)[-3:] == ["latency", "--n", "5"]
    assert found.python_queues() == ["saq"]
    assert found.installed("ours")
    assert not found.installed("saq")


def test_every_latency_that_the_harness_timed_is_kept(peers: Path) -> None:
    found = harness.find(peers)
    assert found is not None
    row = found.latency("saq", "no", 1.0)
    assert (row["n"], row["p50"], row["latency_ms"][0], row["latency_ms"][100]) == (3, 2.0, 1.0, 3.0)


def test_the_harness_does_not_hide_our_own_packages(peers: Path) -> None:
    (peers / "common.py").write_text("raise AssertionError('this is not ours')")
    assert harness.find(peers) is not None
    assert importlib.import_module("common.keys").Keys is Keys


def test_without_a_harness_ours_is_measured_alone_and_that_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(alone, "throughput", lambda aof, scale: {"jobs_s": 1234.0})
    file = tmp_path / "queue.json"
    arguments = ["queue", "--peers-dir", str(tmp_path), "--rounds", "1", "--no-latency", "--json", str(file)]
    assert command.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "skipped: no peers harness" in printed
    assert printed.splitlines()[-1].startswith("vs_best_python=none vs_bullmq=none vs_limit_tasks=none")
    assert json.loads(file.read_text())["medians"]["ours"]["jobs_s"] == 1234.0


def test_a_measurement_that_fails_is_told_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(aof: str, scale: float) -> dict[str, Any]:
        raise BenchFailed("the worker died")

    monkeypatch.setattr(alone, "throughput", broken)
    options = command.parser().parse_args(["queue", "--no-latency"])
    session = queues.Session(None, options)
    session.round(0, ["ours"])
    assert session.document()["errors"] == ["round 1: ours: the worker died"]


def test_ours_alone_really_runs_its_jobs() -> None:
    row = alone.throughput("everysec", 0.01)
    assert row["n"] == 300
    assert row["jobs_s"] > 10
    assert 4 < row["cmds"] < 60


def test_a_redis_for_measuring_is_gone_with_its_data_afterwards() -> None:
    with RedisServer("always") as server:
        config: Any = server.client.config_get("appendfsync")
        assert list(config.values()) == ["always"]
        process = server.p
    assert process.poll() is not None


def test_what_does_not_come_true_in_time_is_a_failure() -> None:
    with pytest.raises(BenchFailed, match="never"):
        until(lambda: False, 0.05, "never")


# --- where the time goes


def test_what_scripts_call_is_taken_from_their_own_time() -> None:
    stats = {"evalsha": (3, 900.0), "hset": (10, 200.0), "zadd": (10, 100.0), "blpop": (1, 50.0), "hget": (9, 90.0)}
    rows = {f"cmdstat_{name}": {"calls": calls, "usec": usec} for name, (calls, usec) in stats.items()}
    server: Any = SimpleNamespace(client=SimpleNamespace(info=lambda section: rows))
    found = hotspots.commands(server, jobs=10)
    assert list(found) == ["scripts, whole (evalsha)", "scripts themselves (Lua)", "hset", "zadd", "blpop"]
    assert found["scripts themselves (Lua)"] == {"us_job": 60.0, "calls_job": 0.3}


def test_the_function_that_runs_is_counted_once_for_itself_and_once_for_each_that_waits_for_it(tmp_path: Path) -> None:
    def outer() -> FrameType | None:
        return inner()

    def inner() -> FrameType | None:
        return sys._getframe()

    samples = hotspots.Samples()
    samples._look(0, outer())
    samples.write(tmp_path / "samples.json")
    rows = json.loads((tmp_path / "samples.json").read_text())
    assert [name.split(".")[-1] for name in rows] == ["inner"]
    assert any(name.endswith("outer") for name in samples.inside)
    assert next(iter(rows))[: len("tests/unit/test_bench.py:")] == "tests/unit/test_bench.py:"


def test_a_line_of_perf_tells_share_library_and_function() -> None:
    line = hotspots.PERF_LINE.match("    26.30%  libpython3.11.so.1.0  [.] _PyEval_EvalFrameDefault  ")
    assert line is not None
    assert (line[1], hotspots._library(line[2]), line[4]) == ("26.30", "libpython3.11", "_PyEval_EvalFrameDefault")


# --- submit, flatness, faults


def test_submit_is_compared_with_the_bare_routes_of_the_same_round() -> None:
    rounds = [
        {"ours": {"requests_s": 90.0}, "bare": {"requests_s": 100.0}, "submit_many": {"jobs_s": 20_000.0}},
        {"ours": {"requests_s": 40.0}, "bare": {"requests_s": 50.0}, "submit_many": {"jobs_s": 22_000.0}},
    ]
    assert submit.ratios(rounds) == {
        "submit_vs_bare": pytest.approx(0.85),
        "submit_vs_bare_json": None,
        "submit_many_jobs_s": 21_000.0,
        "submit_many_3_jobs_s": None,
        "submit_list_jobs_s": None,
    }


async def test_a_backlog_is_as_long_after_a_turn_as_before() -> None:
    async with flat.backlog(flat.Level("50 waiting", 50, 5)) as place:
        cost = await place.turn()
        assert [stats.depth["normal"] for stats in await Results(place.queue.redis, place.queue.settings).queues()] == [
            50
        ]
    assert min(cost["claim_us"], cost["commit_us"], cost["cpu_us"], cost["wall_us"]) > 0
    assert 100 < place.bytes_per_job < 10_000


def test_a_journal_says_which_jobs_ran_again_and_how_long_after_the_kill(tmp_path: Path) -> None:
    file = tmp_path / "journal.txt"
    assert fault.journal(file) == []
    file.write_text("1 77 100.5\n2 77 101.0\n3 78 103.0\n2 78 104.5\n1 78 10")  # the last line is not whole
    whole_ = fault.journal(file)
    assert fault.told(whole_[:2], whole_, killed_at=102.0) == {
        "ran_twice": 1,
        "first_rerun_s": 2.5,
        "last_rerun_s": 2.5,
    }


def test_the_peers_that_lost_nothing_and_recovered_soonest_come_first() -> None:
    def result(results: int, rerun_s: float | None) -> dict[str, Any]:
        end = {"results": results, "ran_twice": 1, "first_rerun_s": rerun_s, "last_rerun_s": rerun_s}
        return {"in_flight_at_kill": 10, "at_60s": end}

    peers = {"lossy": result(490, 1.0), "slow": result(500, 60.0), "soon": result(500, 5.0), "broken": {"error": "x"}}
    assert [name for name, _ in fault.quoted(peers)] == ["soon", "slow", "lossy"]
    assert dict(fault.quoted(peers))["lossy"]["lost"] == 10


# --- quantization


def test_quantized_answers_are_compared_token_by_token_with_the_models_own() -> None:
    rows: dict[str, dict[str, Any]] = {
        "unquantized": {"ids": [[1, 2, 3, 4], [5, 6, 7, 8]]},
        "awq": {"ids": [[1, 2, 9, 4], [5, 6, 7, 8]]},
    }
    quantization.compare(rows)
    assert (rows["awq"]["same_percent"], rows["awq"]["prefix_tokens"]) == (87.5, 3.0)
    assert (rows["unquantized"]["same_percent"], rows["unquantized"]["prefix_tokens"]) == (100.0, 4.0)


def test_what_a_failed_engine_said_last_is_told_without_its_traceback() -> None:
    text = "[rank0]: Traceback\n[rank0]:   File x\n[rank0]: ValueError: no kernel\nLoading: 0%\n"
    assert quantization.last_error(text) == "ValueError: no kernel"
    assert quantization.last_error("killed") == "killed"


# --- fairness


def test_what_passed_a_job_is_what_started_between_its_submit_and_its_start(tmp_path: Path) -> None:
    workers: Any = SimpleNamespace(journal=tmp_path / "journal.txt")
    assert fairness._starts(workers) == 0
    workers.journal.write_text("1 7 99.0\n2 7 100.5\n100 7 101.0\n3 7 101.5\n101 7 102.0\n")
    assert fairness._starts(workers) == 5
    assert fairness._passed(workers, {100: 100.0, 101: 101.2, 102: 103.0}, flood=100) == [1.0, 1.0]
