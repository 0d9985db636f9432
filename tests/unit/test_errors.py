"""The error tree: messages, facts, and how each class leaves the HTTP edge."""

from __future__ import annotations

import pytest

from common import errors
from common.errors import (
    PROBLEMS,
    BodyTooLarge,
    EngineDead,
    IdempotencyMismatch,
    InvalidField,
    JarvisError,
    JobFailed,
    LimitReached,
    MalformedBody,
    NotAllowedNow,
    NotFound,
    QueueFull,
    StoreUnavailable,
    TooMany,
    UnknownModel,
    problem_of,
    shown,
)

ALL = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, JarvisError)]


def test_the_tree_at_the_top_of_the_module_names_every_class() -> None:
    for cls in ALL:
        assert cls.__name__ in (errors.__doc__ or "")


def test_the_tree_gives_the_status_that_the_table_gives() -> None:
    lines = (errors.__doc__ or "").splitlines()
    for cls, problem in PROBLEMS.items():
        (line,) = [text for text in lines if f"─ {cls.__name__} " in text]
        assert f" {problem.status}" in line


def test_a_class_without_a_message_says_its_docstring() -> None:
    assert str(EngineDead()) == "The engine that ran this job is gone."
    assert str(IdempotencyMismatch()) == IdempotencyMismatch.__doc__
    assert str(JarvisError("this one")) == "this one"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (InvalidField("params.top_p", 7, "more than 0, at most 1"), "params.top_p is 7; allowed: more than 0"),
        (BodyTooLarge(10), "body is 'more than 10 bytes'; allowed: at most 10 bytes"),
        (MalformedBody("it ends early"), "it ends early"),
        (UnknownModel("generation", "gpt", ["demo", "tiny"]), "known: demo, tiny"),
        (UnknownModel("generation", "gpt", []), "known: none"),
        (NotFound("job_x"), "no job 'job_x'"),
        (NotAllowedNow("job_x", "queued", "retry"), "job job_x is queued: retry is not allowed"),
        (QueueFull("generation:demo", 7), "try again in 7 s"),
        (StoreUnavailable("ConnectionError"), "send it again"),
        (JobFailed("code", "message"), "code: message"),
    ],
)
def test_a_message_names_the_facts(error: JarvisError, text: str) -> None:
    assert text in str(error)


def test_facts_are_attributes() -> None:
    assert InvalidField("a", 1, "b").allowed == "b"
    assert UnknownModel("generation", "gpt", ["demo"]).known == ["demo"]
    assert NotFound("job_x").job_id == "job_x"
    assert NotAllowedNow("job_x", "queued", "retry").state == "queued"
    assert (QueueFull("q", 7).queue, QueueFull("q", 7).retry_after_s) == ("q", 7)
    assert StoreUnavailable("x").retry_after_s == 1
    failed = JobFailed("c", "m", retryable=True, delay_s=2.0)
    assert (failed.code, failed.message, failed.retryable, failed.delay_s) == ("c", "m", True, 2.0)


def test_only_what_another_try_can_help_is_retryable() -> None:
    assert {cls for cls, problem in PROBLEMS.items() if problem.retryable} == {
        QueueFull,
        LimitReached,
        TooMany,
        StoreUnavailable,
    }


def test_a_subclass_leaves_as_its_nearest_class() -> None:
    class Odd(InvalidField):
        """An odd field."""

    assert problem_of(Odd("a", 1, "b")) is PROBLEMS[InvalidField]
    assert problem_of(BodyTooLarge(1)).status == 413


def test_an_error_that_should_not_leave_the_edge_is_a_500() -> None:
    assert problem_of(EngineDead()).status == 500
    assert not problem_of(JobFailed("a", "b")).retryable


def test_a_shown_value_is_short_and_printable() -> None:
    assert shown("a\x00\nб") == r"'a\x00\n\u0431'"
    assert len(shown("x" * 10_000)) == 80
    assert shown("x" * 10_000).endswith("…")
    assert shown(7) == "7"
