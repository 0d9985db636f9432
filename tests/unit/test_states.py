"""The table of transitions, and that the scripts' tables are the same."""

from __future__ import annotations

import re

import pytest

from common.lists import BUCKETS_S
from common.scripts import FOLDER
from common.states import CODES, STATES, TERMINAL, TRANSITIONS, State

JOB_LUA = (FOLDER / "job.lua").read_text()


def lua_table(name: str) -> str:
    """The text of a table of job.lua."""
    found = re.search(rf"local {name} = \{{(.*?)\}}", JOB_LUA, re.DOTALL)
    assert found
    return found.group(1)


def test_the_diagram_in_the_readme_shows_the_table() -> None:
    readme = (FOLDER.parents[1] / "README.md").read_text()
    diagram = readme.partition("stateDiagram-v2")[2].partition("```")[0]
    drawn = set(re.findall(r"(\S+) --> (\S+)", diagram))
    table = {(state or "[*]", to) for state, ways in TRANSITIONS.items() for to in ways}
    assert drawn == {(str(one), str(to)) for one, to in table} | {(str(state), "[*]") for state in TERMINAL}


def test_every_state_has_a_row_in_the_table() -> None:
    assert set(TRANSITIONS) == {None, *State}


def test_nothing_leaves_a_terminal_state() -> None:
    assert {state for state in State if not TRANSITIONS[state]} == TERMINAL


def test_every_state_can_be_reached_and_left_towards_an_end() -> None:
    reached: set[State | None] = {None}
    last: set[State | None] = set()
    while reached != last:
        last = set(reached)
        reached |= {to for at in last for to in TRANSITIONS[at]}
    assert reached == {None, *State}
    for state in set(State) - TERMINAL:
        assert TRANSITIONS[state] & TERMINAL


def test_only_a_job_in_progress_can_complete_or_fail() -> None:
    for end in (State.COMPLETED, State.INCOMPLETE, State.FAILED):
        assert [state for state in TRANSITIONS if end in TRANSITIONS[state]] == [State.IN_PROGRESS]


def test_codes_are_single_letters_and_lead_back() -> None:
    assert set(CODES) == set(State)
    assert all(re.fullmatch("[a-z]", code) for code in CODES.values())
    assert {STATES[code]: code for code in STATES} == CODES


def test_the_scripts_have_the_same_codes() -> None:
    assert dict(re.findall(r"(\w) = '(\w+)'", lua_table("STATES"))) == {code: s.value for s, code in CODES.items()}


def test_the_scripts_have_the_same_terminal_states() -> None:
    found = re.search(r"local TERMINAL = '(\w+)'", JOB_LUA)
    assert found
    assert set(found[1]) == {CODES[state] for state in TERMINAL}


def test_the_scripts_have_the_same_buckets() -> None:
    assert [int(ms) / 1000 for ms in lua_table("BUCKETS").split(",")] == pytest.approx(BUCKETS_S)


def test_a_state_is_spelled_as_on_the_wire() -> None:
    assert [str(state) for state in State] == [
        *("scheduled", "queued", "in_progress", "completed", "incomplete", "failed", "cancelled", "expired")
    ]
