"""API keys as texts, who may see what, and the share of an owner with several keys."""

from __future__ import annotations

import re
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.access import ANYBODY, ApiKey, Principal, digest_of, id_of, new_key, widest
from common.errors import InvalidField, NotPermitted
from common.limits import Policy
from ops import own_key


def test_a_key_has_an_id_a_secret_and_a_checksum() -> None:
    key = new_key()
    assert re.fullmatch(r"jv_[a-z0-9]{12}_[0-9A-Za-z]{49}", key.text)
    assert id_of(key.text) == key.id
    assert key.digest == digest_of(key.text)
    assert key.text not in repr(key)


def test_another_secret_for_a_key_has_its_id() -> None:
    first = new_key()
    second = new_key(first.id)
    assert second.id == first.id
    assert second.text != first.text


@given(st.integers(0, 63), st.sampled_from("0aZ_é \n"))
def test_a_mistyped_key_is_known_by_its_checksum(place: int, typed: str) -> None:
    text = new_key().text
    wrong = text[:place] + typed + text[place + 1 :]
    assert id_of(wrong) is None or wrong == text


@given(st.text())
def test_no_text_makes_the_check_of_a_key_fail(text: str) -> None:
    assert id_of(text) is None


def made(**changes: object) -> ApiKey:
    key = ApiKey(id="a" * 12, name="n", owner="ann", tier="free", limits=(), scopes=("jobs",), digest="new")
    return msgspec.structs.replace(key, **changes)


def test_the_secret_before_a_rotation_counts_until_its_time_is_over() -> None:
    key = made(old_digest="old", old_until_ms=1000)
    assert key.matches("new", 5000)
    assert key.matches("old", 999)
    assert not key.matches("old", 1000)
    assert not made().matches("", 0)


def test_a_key_lives_until_it_is_revoked_or_expires() -> None:
    assert made().live(time.time() * 1000)
    assert made(expires_ms=10).live(9)
    assert not made(expires_ms=10).live(10)
    assert not made(revoked_ms=1).live(0)


def test_a_keys_own_limits_win_over_its_tiers() -> None:
    tiers = {"free": ("requests=100/1h", "weight=2")}
    assert made(limits=("requests=5/1m",)).policy(tiers).texts() == ["requests=5/60s", "weight=2"]
    with pytest.raises(InvalidField, match="tier is 'gone'; allowed: free"):
        made(tier="gone").policy(tiers)


def test_anybody_is_who_he_says_and_sees_all() -> None:
    assert ANYBODY.user(None) == "anonymous"
    assert ANYBODY.user("ann") == "ann"
    assert ANYBODY.sees is None
    assert ANYBODY.listed("ann") == "ann"


def test_a_key_is_its_owners_and_an_admin_may_name_another() -> None:
    ann = Principal("ann", "k", ("jobs",))
    assert (ann.user(None), ann.user("ann"), ann.sees, ann.listed(None)) == ("ann", "ann", "ann", "ann")
    with pytest.raises(NotPermitted, match="user is 'bob'; allowed: 'ann'") as caught:
        ann.user("bob")
    assert caught.value.field == "user"
    with pytest.raises(NotPermitted):
        ann.listed("bob")
    admin = Principal("root", "k", ("admin",))
    assert (admin.user(None), admin.user("bob"), admin.sees, admin.listed(None)) == ("root", "bob", None, None)
    assert admin.may("metrics")
    assert not ann.may("metrics")


def test_an_owners_share_is_the_widest_of_his_keys() -> None:
    small = Policy.parse(["in_progress=2", "tokens=100/1m,wait"])
    large = Policy.parse(["in_progress=5", "tokens=300/1m,wait,burst=50", "weight=3"])
    assert widest([small, large]).texts() == ["tokens=300/60s,burst=100,wait", "in_progress=5", "weight=3"]
    assert widest([small, Policy()]) == Policy()
    assert widest([]) == Policy()


def test_a_kept_key_is_its_users_alone_and_goes_to_no_other_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = own_key.kept_in(tmp_path / "data")
    assert own_key.read(file) is None
    own_key.keep(file, "jv_one")
    own_key.keep(file, "jv_two")
    assert file.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("JARVIS_DATA_DIR", str(file.parent))
    monkeypatch.delenv("JARVIS_API_KEY", raising=False)
    assert own_key.for_server(loopback=True) == "jv_two"
    assert own_key.for_server(loopback=False) is None
    monkeypatch.setenv("JARVIS_API_KEY", "jv_given")
    assert own_key.for_server(loopback=False) == "jv_given"
