"""The command line against a stand-in web process on real sockets: what it prints, sends, and ends with."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ops.cli import app
from ops.client import events_of
from ops.tables import seconds
from tests.redis_server import RedisServer, free_port
from tests.unit.wire_stand_in import ANSWER, JOB, StandIn, state, token

QUEUE = {
    "queue": "generation:demo",
    "depth": {"high": 1, "normal": 20, "low": 300},
    "in_progress": 4,
    "workers": 1,
    "oldest_wait_s": 2.5,
}
TEXT = "A lease is a promise."


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("JARVIS_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def server() -> Iterator[StandIn]:
    """A web process that knows one job."""
    stand_in = StandIn()
    yield stand_in
    stand_in.stop()


@pytest.fixture
def jarvis(server: StandIn) -> Callable[..., Result]:
    """Run the command line in this process: `jarvis("queues", "--json")`."""

    def run(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, list(arguments), input=stdin, env={"JARVIS_URL": server.url})

    return run


def command(*arguments: str, url: str) -> list[str]:
    """The command line as a program of its own."""
    return [sys.executable, "-m", "ops.cli", *arguments, "--url", url]


def sent(server: StandIn) -> dict[str, object]:
    """The one job that was submitted."""
    (body,) = server.asked("POST", "/v1/jobs")
    assert body is not None
    return body


# -- submit


def test_submit_prints_only_the_id(jarvis: Callable[..., Result], server: StandIn) -> None:
    result = jarvis("submit", "What", "is", "a", "lease?")
    assert (result.exit_code, result.stdout) == (0, f"{JOB}\n")
    assert sent(server) == {
        "kind": "generation",
        "model": "demo",
        "input": {"prompt": "What is a lease?"},
        "params": {},
    }


def test_submit_sends_every_option_under_its_wire_name(jarvis: Callable[..., Result], server: StandIn) -> None:
    options = (
        "--max-tokens 8 --temperature 0 --seed 7 --stop END --stop FIN --param top_p=0.5 --param flag=word "
        "--priority high --delay-s 1 --ttl-s 2 --timeout-s 3 --max-attempts 4 --user ann --metadata a=b=c "
        "--model other --idempotency-key k"
    )
    assert jarvis("submit", "hello", *options.split()).exit_code == 0
    assert sent(server) == {
        "kind": "generation",
        "model": "other",
        "input": {"prompt": "hello"},
        "params": {
            "max_tokens": 8,
            "temperature": 0,
            "seed": 7,
            "stop": ["END", "FIN"],
            "top_p": 0.5,
            "flag": "word",
        },
        "priority": "high",
        "delay_s": 1,
        "ttl_s": 2,
        "timeout_s": 3,
        "max_attempts": 4,
        "user": "ann",
        "metadata": {"a": "b=c"},
    }
    assert server.requests[0][4]["idempotency-key"] == '"k"'


def test_an_embedding_takes_each_text_as_one(jarvis: Callable[..., Result], server: StandIn) -> None:
    assert jarvis("submit", "--kind", "embedding", "one text", "another").exit_code == 0
    body = sent(server)
    assert (body["model"], body["input"]) == ("minilm", {"texts": ["one text", "another"]})


def test_the_prompt_comes_from_stdin(jarvis: Callable[..., Result], server: StandIn) -> None:
    assert jarvis("submit", "--prompt", "-", stdin="line one\nline two\n").exit_code == 0
    assert sent(server)["input"] == {"prompt": "line one\nline two\n"}


def test_messages_come_from_a_file(jarvis: Callable[..., Result], server: StandIn, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    file = tmp_path / "chat.json"
    file.write_text(json.dumps(messages))
    assert jarvis("submit", "--messages", str(file)).exit_code == 0
    assert sent(server)["input"] == {"messages": messages}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "one way"),
        (["hello", "--prompt", "again"], "one way"),
        (["hello", "--metadata", "novalue"], "KEY=VALUE"),
        (["hello", "--temperature", "nan"], "no such number"),
        (["--messages", "/does/not/exist"], "No such file"),
        (["hello", "--priority", "urgent"], "high"),
        (["hello", "--url", "localhost:8000"], "http://"),
    ],
)
def test_a_wrong_command_line_is_2_and_sends_nothing(
    jarvis: Callable[..., Result], server: StandIn, arguments: list[str], words: str
) -> None:
    result = jarvis("submit", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not server.requests


def test_a_lost_reply_is_asked_for_again_with_the_same_key(jarvis: Callable[..., Result], server: StandIn) -> None:
    server.drop_next_replies = 2
    assert jarvis("submit", "hello").stdout == f"{JOB}\n"
    keys = {headers["idempotency-key"] for *_, headers in server.requests}
    assert (len(server.requests), len(keys)) == (3, 1)


def test_submit_json_prints_the_record(jarvis: Callable[..., Result]) -> None:
    record = json.loads(jarvis("submit", "hello", "--json").stdout)
    assert (record["id"], record["status"]) == (JOB, "queued")


def test_submit_wait_prints_id_and_result(jarvis: Callable[..., Result]) -> None:
    result = jarvis("submit", "hello", "--wait")
    assert (result.exit_code, result.stdout) == (0, f"{JOB}\n{TEXT}\n")


def test_submit_wait_json_prints_the_record_with_its_result(jarvis: Callable[..., Result]) -> None:
    record = json.loads(jarvis("submit", "hello", "--wait", "--json").stdout)
    assert (record["status"], record["result"]["output"]["text"]) == ("completed", TEXT)


def test_submit_watch_prints_the_answer_and_the_id_beside_it(jarvis: Callable[..., Result]) -> None:
    result = jarvis("submit", "hello", "--watch")
    assert (result.exit_code, result.stdout) == (0, f"{TEXT}\n")
    assert result.stderr.splitlines()[0] == JOB


# -- watch


def test_watch_in_a_pipe_prints_the_answer_alone(jarvis: Callable[..., Result]) -> None:
    result = jarvis("watch", JOB)
    assert (result.exit_code, result.stdout) == (0, f"{TEXT}\n")
    assert result.stderr.splitlines() == ["queued", "in progress", "completed · waited 12 ms · ran 1.5 s"]


def test_watch_shows_every_event_once_and_in_order_wherever_the_connection_breaks(
    jarvis: Callable[..., Result], server: StandIn
) -> None:
    # Each connection lets one event and a part of the next through, so every event is cut somewhere once.
    server.cuts = [80, 70, 75, 60, 90, 85]
    result = jarvis("watch", JOB, "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(event["seq"], event["event"], event["data"]) for event in events] == [
        (number, *event) for number, event in enumerate(ANSWER, 1)
    ]
    assert result.exit_code == 0
    assert len(server.resumed_after) > 3
    assert "trying again, from event" in result.stderr
    assert "connected again" in result.stderr


@pytest.mark.parametrize("cut", range(0, 260, 13))
def test_no_byte_is_a_bad_place_to_lose_the_connection(
    jarvis: Callable[..., Result], server: StandIn, cut: int
) -> None:
    server.cuts = [cut]
    assert jarvis("watch", JOB).stdout == f"{TEXT}\n"


def test_an_answer_that_ends_in_order_before_the_job_does_is_resumed(
    jarvis: Callable[..., Result], server: StandIn
) -> None:
    server.cuts, server.clean_cuts = [150, 80], True
    server.record = {"status": "completed"}
    result = jarvis("watch", JOB)
    assert (result.exit_code, result.stdout) == (0, f"{TEXT}\n")


def test_watch_outlives_a_restart_of_the_web_process(server: StandIn) -> None:
    server.hold_after = 3
    server.record = {"status": "in_progress"}
    port = server.port
    watching = subprocess.Popen(
        command("watch", JOB, url=server.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert server.holding.wait(20)
    server.stop()
    second = StandIn(port)
    try:
        stdout, stderr = watching.communicate(timeout=30)
    finally:
        second.stop()
    assert (watching.returncode, stdout) == (0, f"{TEXT}\n"), stderr
    assert second.resumed_after == [3]
    assert "trying again, from event 4 on" in stderr


@pytest.mark.parametrize("status", ["failed", "cancelled", "expired", "incomplete"])
def test_any_other_end_than_completed_is_1(jarvis: Callable[..., Result], server: StandIn, status: str) -> None:
    server.events = [state("queued"), state("in_progress"), token("A l"), state(status)]
    server.record = {"status": status, "error": {"code": "engine_dead", "message": "it is gone"}}
    result = jarvis("watch", JOB)
    assert (result.exit_code, result.stdout) == (1, "A l\n")
    assert f"{status} · engine_dead: it is gone" in result.stderr


def test_a_job_given_to_another_worker_says_so_and_goes_on(jarvis: Callable[..., Result], server: StandIn) -> None:
    server.events = [*ANSWER[:4], state("queued"), state("in_progress"), *ANSWER[4:]]
    result = jarvis("watch", JOB)
    assert result.stdout.replace("\n", "") == TEXT
    assert "queued again; the answer will go on from here" in result.stderr


def test_watch_after_shows_only_what_follows(jarvis: Callable[..., Result], server: StandIn) -> None:
    result = jarvis("watch", JOB, "--after", "4", "--json")
    assert [json.loads(line)["seq"] for line in result.stdout.splitlines()] == [5, 6]
    assert server.resumed_after == [4]


def test_watch_of_an_embedding_prints_its_numbers(jarvis: Callable[..., Result], server: StandIn) -> None:
    server.events = [state("queued"), state("in_progress"), state("completed")]
    server.result = {"output": {"embeddings": [[0.5, 1.0], [0.25, 2.0]], "dimensions": 2}}
    assert jarvis("watch", JOB).stdout == "[0.5, 1.0]\n[0.25, 2.0]\n"


def test_watch_waits_while_the_store_is_away(jarvis: Callable[..., Result], server: StandIn) -> None:
    path = f"GET /v1/jobs/{JOB}/events"
    problem = {"title": "Service Unavailable", "detail": "the job store does not answer"}
    server.answers[path] = (503, problem)
    threading.Timer(0.5, lambda: server.answers.pop(path)).start()
    result = jarvis("watch", JOB)
    assert (result.exit_code, result.stdout) == (0, f"{TEXT}\n")
    assert "the job store does not answer; trying again" in result.stderr


def test_watch_gives_up_when_its_patience_ends(jarvis: Callable[..., Result], server: StandIn) -> None:
    path = f"GET /v1/jobs/{JOB}/events"
    server.answers[path] = (503, {"title": "Service Unavailable", "detail": "the store is away"})
    result = jarvis("watch", JOB, "--patience-s", "0.3")
    assert result.exit_code == 1
    assert "refused: Service Unavailable (503)\n  the store is away" in result.stderr


def test_ctrl_c_leaves_the_job_running_and_says_how_to_come_back(server: StandIn) -> None:
    server.hold_after = 4
    watching = subprocess.Popen(
        command("watch", JOB, url=server.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert server.holding.wait(20)
    assert watching.stdout is not None
    assert watching.stdout.read(13) == "A lease is a "
    watching.send_signal(signal.SIGINT)
    _, stderr = watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert f"The job goes on. Come back with: jarvis watch {JOB} --url {server.url}" in stderr
    assert not server.asked("POST", f"/v1/jobs/{JOB}/cancel")


def in_a_terminal(arguments: list[str], until: str, act: Callable[[], None]) -> tuple[int, str]:
    """Run a program in a terminal; `act` once `until` is shown; its exit code and all it showed."""
    ours, its = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    program = subprocess.Popen(arguments, stdin=its, stdout=its, stderr=its, env=environment)
    os.close(its)
    shown, acted, deadline = "", False, time.monotonic() + 30
    while time.monotonic() < deadline:
        if not select.select([ours], [], [], 1)[0]:
            continue
        try:
            piece = os.read(ours, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        shown += piece.decode(errors="replace")
        if until in shown and not acted:
            acted = True
            act()
    os.close(ours)
    assert acted, shown
    return program.wait(timeout=10), shown


def test_in_a_terminal_a_waiting_job_shows_its_place_and_then_its_answer(server: StandIn) -> None:
    server.hold_after = 1
    server.events = [*ANSWER[:2], token("\x1b]0;evil\x07"), *ANSWER[2:]]
    server.record = {"status": "queued", "queue_position": 3, "waiting_for": "a worker: none is running"}

    def go_on() -> None:
        server.hold_after = None
        server.record = {"status": "completed"}
        server.released.set()

    arguments = command("watch", JOB, url=server.url)
    code, shown = in_a_terminal(arguments, "place 3 in the line · waits for a worker: none is running", go_on)
    assert code == 0
    assert TEXT in shown
    assert "\x1b]0;evil" not in shown


def test_watching_from_the_last_event_on_ends_at_once(jarvis: Callable[..., Result], server: StandIn) -> None:
    server.answers[f"GET /v1/jobs/{JOB}/events"] = (204, {})
    result = jarvis("watch", JOB, "--after", "6")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith("completed")


# -- looking and acting


def test_status_says_where_a_job_stands(jarvis: Callable[..., Result], server: StandIn) -> None:
    server.record = {
        "status": "queued",
        "queue_position": 3,
        "waiting_for": "a free slot",
        "eta": {"p50": 4.2, "p90": 130},
        "metadata": {"a": "[b]"},
    }
    result = jarvis("status", JOB)
    assert result.exit_code == 0
    assert "queued · place 3 in the line · waits for a free slot" in result.stdout
    assert "done in about 4.2 s, likely within 2.17 min" in result.stdout
    assert "a [b]" in result.stdout


def test_result_prints_the_text(jarvis: Callable[..., Result]) -> None:
    assert jarvis("result", JOB).stdout == f"{TEXT}\n"


def test_result_of_an_unfinished_job_is_1_and_says_why(jarvis: Callable[..., Result], server: StandIn) -> None:
    server.answers[f"GET /v1/jobs/{JOB}/result"] = (202, {"id": JOB, "status": "queued", "output": None})
    server.record = {"status": "queued"}
    result = jarvis("result", JOB)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"no result: {JOB} is queued" in result.stderr


def test_result_wait_waits(jarvis: Callable[..., Result], server: StandIn) -> None:
    assert jarvis("result", JOB, "--wait").stdout == f"{TEXT}\n"
    assert server.resumed_after == [0]


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [(["cancel", JOB], f"{JOB} cancelled\n"), (["retry", JOB], "job_again\n"), (["replay", JOB], f"{JOB}\n")],
)
def test_acting_on_a_job_prints_what_became_of_it(
    jarvis: Callable[..., Result], arguments: list[str], printed: str
) -> None:
    result = jarvis(*arguments)
    assert (result.exit_code, result.stdout) == (0, printed)


def test_list_sends_its_filters_and_says_how_to_go_on(jarvis: Callable[..., Result], server: StandIn) -> None:
    page = {"object": "list", "data": [server.document()], "has_more": True, "next": "5-0"}
    server.answers["GET /v1/jobs"] = (200, page)
    result = jarvis("list", "--status", "completed", "--user", "ann", "--limit", "1", "--after", "9-0")
    assert server.requests[0][2] == {
        "status": ["completed"],
        "user": ["ann"],
        "limit": ["1"],
        "after": ["9-0"],
    }
    head, row = result.stdout.splitlines()
    assert head.split() == ["ID", "STATUS", "KIND", "MODEL", "PRIORITY", "USER", "AGE"]
    assert row.split()[:6] == [JOB, "completed", "generation", "demo", "normal", "anonymous"]
    assert "more: --after 5-0" in result.stderr


def test_queues_is_a_table(jarvis: Callable[..., Result], server: StandIn) -> None:
    server.answers["GET /v1/queues"] = (200, {"object": "list", "data": [QUEUE]})
    lines = jarvis("queues").stdout.splitlines()
    assert lines[0].split() == ["QUEUE", "HIGH", "NORMAL", "LOW", "RUNNING", "WORKERS", "OLDEST"]
    assert lines[1].split() == ["generation:demo", "1", "20", "300", "4", "1", "2.5", "s"]


def test_workers_are_a_table_with_what_each_runs_on(jarvis: Callable[..., Result], server: StandIn) -> None:
    whole = {"queue": "generation:demo", "host": "node", "pid": 7, "slots": 64, "device": "cpu", "gpu_share": 0.0}
    part = whole | {"device": "GPU 1 (simulated)", "gpu_share": 0.4}
    server.answers["GET /v1/workers"] = (200, {"object": "list", "data": [whole, part]})
    head, first, second = jarvis("workers").stdout.splitlines()
    assert head.split() == ["QUEUE", "HOST", "PID", "SLOTS", "DEVICE", "SHARE", "UP"]
    assert first.split()[:6] == ["generation:demo", "node", "7", "64", "cpu", "-"]
    assert second.split()[4:8] == ["GPU", "1", "(simulated)", "0.4"]


def test_usage_is_a_table_csv_or_json(jarvis: Callable[..., Result], server: StandIn) -> None:
    jobs = dict.fromkeys(("completed", "incomplete", "failed", "cancelled", "expired"), 0) | {"completed": 3}
    numbers = {"prompt_tokens": 5, "completion_tokens": 7, "audio_seconds": 0, "gpu_ms": 100, "cost_micros": {}}
    one: dict[str, object] = {
        "day": "2026-11-28",
        "model": "demo",
        "api_key": None,
        "owner": None,
        "jobs": jobs,
        **numbers,
    }
    document = {"object": "list", "group_by": ["day", "model"], "data": [one], "total": one}
    server.answers["GET /v1/usage"] = (200, document)
    _, row, total = jarvis("usage", "--from", "2026-11-01").stdout.splitlines()
    assert row.split() == ["2026-11-28", "demo", "3", "0", "5", "7", "0", "0.1", "-"]
    assert total.split()[0] == "total"
    assert jarvis("usage", "--csv").stdout.splitlines()[1] == "2026-11-28,demo,3,0,0,0,0,5,7,0,100"
    assert json.loads(jarvis("usage", "--json").stdout) == document


def test_queues_watch_refreshes_until_ctrl_c(server: StandIn) -> None:
    server.answers["GET /v1/queues"] = (200, {"object": "list", "data": [QUEUE]})
    arguments = command("queues", "--watch", url=server.url)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        lines = [program.stdout.readline() for _ in range(4)]
        program.send_signal(signal.SIGINT)
        assert program.wait(timeout=20) == 0
    assert lines[:2] == lines[2:]


def test_parked_lists_reasons(jarvis: Callable[..., Result], server: StandIn) -> None:
    entry = {
        "id": JOB,
        "queue": "generation:demo",
        "reason": "poison: 3 workers died",
        "parked_at": time.time(),
    }
    server.answers["GET /v1/parked"] = (
        200,
        {"object": "list", "data": [entry], "has_more": False, "next": None},
    )
    assert "poison: 3 workers died" in jarvis("parked").stdout


@pytest.mark.parametrize("arguments", [["status", JOB], ["cancel", JOB], ["retry", JOB], ["result", JOB]])
def test_json_prints_one_document(jarvis: Callable[..., Result], arguments: list[str]) -> None:
    assert "id" in json.loads(jarvis(*arguments, "--json").stdout)


# -- errors


def test_a_refusal_is_1_and_names_field_value_and_what_is_allowed(
    jarvis: Callable[..., Result], server: StandIn
) -> None:
    errors = [{"field": "params.max_tokens", "value": "0", "message": "allowed: 1 to 512"}]
    problem = {
        "type": "about:blank",
        "title": "Unprocessable Content",
        "status": 422,
        "detail": "…",
        "errors": errors,
    }
    server.answers["POST /v1/jobs"] = (422, problem)
    result = jarvis("submit", "hello", "--max-tokens", "0")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "refused: Unprocessable Content (422)\n  params.max_tokens is 0; allowed: 1 to 512\n"


def test_a_refusal_with_json_is_the_problem_itself(jarvis: Callable[..., Result]) -> None:
    result = jarvis("status", "job_unknown", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert json.loads(result.stderr)["status"] == 404


def test_a_refusal_without_a_value_shows_none(jarvis: Callable[..., Result], server: StandIn) -> None:
    errors = [{"field": "Idempotency-Key", "value": None, "message": "it was used with another request"}]
    server.answers["POST /v1/jobs"] = (422, {"title": "Idempotency-Key Reused", "errors": errors})
    assert jarvis("submit", "hello").stderr.endswith("  Idempotency-Key: it was used with another request\n")


def test_a_full_queue_says_when_to_come_back(jarvis: Callable[..., Result], server: StandIn) -> None:
    problem = {"title": "Queue Full", "detail": "queue is full", "headers": {"Retry-After": "7"}}
    server.answers["POST /v1/jobs"] = (429, problem)
    assert "try again in 7 s" in jarvis("submit", "hello").stderr


@pytest.mark.parametrize("arguments", [["queues"], ["watch", JOB], ["submit", "hello"], ["list", "--json"]])
def test_no_server_is_3_and_says_how_to_start_one(arguments: list[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    result = CliRunner().invoke(app, [*arguments, "--url", url])
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == f"no Jarvis at {url}: start it with make run (connection refused)\n"


def test_another_program_on_the_port_is_not_taken_for_jarvis(
    jarvis: Callable[..., Result], redis_server: RedisServer
) -> None:
    result = jarvis("queues", "--url", f"http://127.0.0.1:{redis_server.port}")
    assert result.exit_code == 3
    assert "no Jarvis at" in result.stderr


def test_help_comes_quickly_and_names_the_exit_codes() -> None:
    began = time.monotonic()
    shown = subprocess.run([sys.executable, "-m", "ops.cli", "--help"], capture_output=True, text=True, check=True)
    assert time.monotonic() - began < 5  # a guard against importing engines, not a measurement
    assert "Exit codes: 0 ok; 1" in shown.stdout


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'httpx', 'rich', 'redis', 'pydantic', 'torch', 'vllm', 'msgspec'}"
    code = f"import sys, ops.cli; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


@pytest.mark.parametrize(("name", "module"), [("bench", "ops.bench"), ("up", "ops.supervise")])
def test_bench_and_up_become_their_modules_with_all_arguments(
    monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    became: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda _, arguments: became.append(arguments))
    CliRunner().invoke(app, [name, "queue", "--jobs", "10", "--help"])
    assert became == [[sys.executable, "-m", module, "queue", "--jobs", "10", "--help"]]


# -- parts


def test_a_line_separator_inside_json_ends_no_event() -> None:
    stream = 'id: 1\nevent: token\ndata: {"text": "a\u2028b\x85c"}\r\n\r\n: ping\n\nid: 2\ndata: {}\n'.encode()
    events = list(events_of([stream[index : index + 1] for index in range(len(stream))]))
    assert [(event.seq, event.data) for event in events] == [(1, {"text": "a\u2028b\x85c"})]


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0123, "12 ms"), (1.5, "1.5 s"), (90, "90 s"), (600, "10 min"), (7200, "2 h"), (864000, "10 d")],
)
def test_lengths_of_time_read_well(value: float, words: str) -> None:
    assert seconds(value) == words
