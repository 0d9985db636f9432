"""The values that cross a border."""

from __future__ import annotations

import msgspec
import pytest

from common.jobs import ClaimedJob, JobEvent, JobRecord, JobResult, JobSpec, Ticket, Work, decode, encode
from common.states import State


def claimed(raw: bytes) -> ClaimedJob:
    """A claimed job with this work."""
    return ClaimedJob("job_x", "job_x:2p", 2, 1, 5, "low", "ada", 600.0, raw, "generation", "demo")


def test_a_spec_names_its_queue() -> None:
    assert JobSpec(kind="generation", model="qwen3-8b", input={}).queue == "generation:qwen3-8b"


def test_a_claimed_job_says_what_was_asked() -> None:
    spec = claimed(encode(Work({"prompt": "x"}, {"seed": 1}, "nightly"))).spec
    assert spec == JobSpec(
        kind="generation",
        model="demo",
        input={"prompt": "x"},
        params={"seed": 1},
        user="ada",
        priority="low",
        function="nightly",
    )


def test_a_ticket_reads_back_with_spaces_in_the_users_name() -> None:
    ticket = Ticket.parse("1795408002765 1 2 600000 3 l generation:demo Ada of London")
    assert (ticket.lane, ticket.queue, ticket.user) == ("low", "generation:demo", "Ada of London")
    assert (ticket.expires_ms, ticket.attempts, ticket.deaths, ticket.tries) == (1795408002765, 1, 2, 3)
    assert (ticket.units, ticket.api_key) == (0, "")


def test_a_ticket_tells_what_the_job_may_need_and_which_key_asked() -> None:
    ticket = Ticket.parse("1795408002765 1 2 600000 3 n1200,k7f3 generation:demo ada")
    assert (ticket.lane, ticket.units, ticket.api_key, ticket.user) == ("normal", 1200, "k7f3", "ada")
    assert Ticket.parse("1795408002765 1 2 600000 3 h,k7f3 generation:demo ada").api_key == "k7f3"


@pytest.mark.parametrize("raw", [b"", b"null", b"[]", b"{}", b'{"input":1}', b'{"input":{},"v":2}', b"\x80\x04K\x01."])
def test_a_foreign_encoding_is_an_error_and_runs_nothing(raw: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        _ = claimed(raw).spec


def test_the_version_of_the_encoding_is_named_in_the_error() -> None:
    with pytest.raises(msgspec.ValidationError, match="version 99"):
        _ = claimed(b'{"input":{},"v":99}').spec


def test_the_encoded_work_leaves_out_what_is_not_said() -> None:
    assert encode(Work({"prompt": "x"})) == b'{"input":{"prompt":"x"}}'
    assert decode(b'{"input":{"prompt":"x"}}', type=Work).v == 1


def test_values_cannot_be_changed() -> None:
    for value in (JobSpec(kind="a", model="b", input={}), Work({}), JobResult({}), JobEvent(1, "state", {})):
        with pytest.raises(AttributeError):
            value.user = "eve"  # type: ignore[misc, union-attr]


@pytest.mark.parametrize(("finished_at", "terminal"), [(None, False), (1.0, True)])
def test_a_record_is_terminal_when_it_has_an_end(finished_at: float | None, terminal: bool) -> None:
    record = JobRecord(
        id="job_x",
        kind="generation",
        model="demo",
        status=State.COMPLETED if terminal else State.QUEUED,
        priority="normal",
        user="ada",
        created_at=0.0,
        finished_at=finished_at,
        max_attempts=3,
        history=[],
    )
    assert record.terminal is terminal
