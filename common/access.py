"""Who may do what: the text of an API key, its record, and the caller that a request comes from.

A key is `jv_<id>_<secret><checksum>`: the id (12 lower-case letters and digits) names it everywhere, the secret (256
random bits, 43 characters) is kept by its owner alone, and the checksum (6 characters) tells a typing mistake, and a
scanner that it has found one, without asking anybody. Only the SHA-256 of the whole text is stored: against so long a
random secret nothing slower helps.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import msgspec

from common.errors import InvalidField, NotPermitted
from common.limits import Limit, Policy

PREFIX = "jv_"
ID_PATTERN = r"[a-z0-9]{12}"
#: What an owner may be called, as any user of the queue.
OWNER_PATTERN = r"[A-Za-z0-9_.@:-]{1,64}"
#: Whose things are when nobody says who asks.
ANONYMOUS = "anonymous"
Scope = Literal["jobs", "admin", "metrics"]
SCOPES: tuple[Scope, ...] = ("jobs", "admin", "metrics")
LONGEST_NAME = 64
MOST_LIMITS = 32

_SMALL = "abcdefghijklmnopqrstuvwxyz0123456789"
_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_KEY = re.compile(rf"jv_({ID_PATTERN})_([0-9A-Za-z]{{43}})([0-9A-Za-z]{{6}})")


class NewKey(NamedTuple):
    """A key that was just made: the only time that its text is known here."""

    id: str
    text: str
    digest: str

    def __repr__(self) -> str:
        return f"NewKey({self.id}, …)"


def new_key(key_id: str | None = None) -> NewKey:
    """A new key; with an id, a new secret for that key."""
    key_id = key_id or "".join(secrets.choice(_SMALL) for _ in range(12))
    head = f"{PREFIX}{key_id}_{_base62(secrets.randbits(256), 43)}"
    text = head + _checksum(head)
    return NewKey(key_id, text, digest_of(text))


def id_of(text: str) -> str | None:
    """The id in a key's text, or None when it is no key or was mistyped."""
    found = _KEY.fullmatch(text)
    if not found or not hmac.compare_digest(_checksum(text[:-6]), found[3]):
        return None
    return found[1]


def digest_of(text: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(text.encode()).hexdigest()


def _checksum(head: str) -> str:
    return _base62(zlib.crc32(head.encode()), 6)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_LETTERS[digit])
    return "".join(reversed(digits))


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is stored; times are Unix milliseconds, 0 for never."""

    id: str
    name: str
    owner: str
    tier: str
    limits: tuple[str, ...]
    scopes: tuple[Scope, ...]
    digest: str
    old_digest: str = ""
    old_until_ms: int = 0
    expires_ms: int = 0
    created_ms: int = 0
    revoked_ms: int = 0
    used_ms: int = 0

    def __repr__(self) -> str:
        return f"ApiKey({self.id})"

    def matches(self, digest: str, now_ms: float) -> bool:
        """Whether a text's digest is that of this key's secret, or of the one before while it still counts."""
        new = hmac.compare_digest(digest, self.digest)
        old = hmac.compare_digest(digest, self.old_digest or "-")
        return new or (old and now_ms < self.old_until_ms)

    def expired(self, now_ms: float) -> bool:
        """Whether its time is over."""
        return 0 < self.expires_ms <= now_ms

    def live(self, now_ms: float) -> bool:
        """Whether it may be used."""
        return not self.revoked_ms and not self.expired(now_ms)

    def policy(self, tiers: Mapping[str, tuple[str, ...]]) -> Policy:
        """What it may use: its own limits, and its tier's where it has none. Raises InvalidField for a lost tier."""
        if self.tier not in tiers:
            raise InvalidField("tier", self.tier, ", ".join(tiers))
        return Policy.parse(self.limits).over(Policy.parse(tiers[self.tier]))


class Principal(msgspec.Struct, frozen=True):
    """Who asks. Without a key's id it is anybody, on a server that has no keys: then `user` is what callers say."""

    owner: str = ANONYMOUS
    key: str = ""
    scopes: tuple[Scope, ...] = SCOPES

    @property
    def admin(self) -> bool:
        """Whether it sees and does all."""
        return not self.key or "admin" in self.scopes

    @property
    def sees(self) -> str | None:
        """The only owner whose things it sees, None when it sees all."""
        return None if self.admin else self.owner

    def may_see(self, owner: str) -> bool:
        """Whether a thing of this owner is there for it."""
        return self.admin or owner == self.owner

    def may(self, scope: Scope) -> bool:
        """Whether it has a scope; admin has all."""
        return scope in self.scopes or "admin" in self.scopes

    def user(self, named: str | None, field: str = "user") -> str:
        """Whose a new thing is, when the request names someone or nobody. Raises NotPermitted for somebody else."""
        if named is None or named == self.owner:
            return self.owner
        if not self.admin:
            raise NotPermitted(f"{field} is {named!r}; allowed: {self.owner!r}, whose key this is, or nothing", field)
        return named

    def listed(self, named: str | None, field: str = "user") -> str | None:
        """Whose things a list has: those of who is named, all for an admin. Raises NotPermitted for somebody else."""
        return named if self.admin else self.user(named, field)


#: Everybody, on a server that has no keys.
ANYBODY = Principal()


def widest(policies: Iterable[Policy]) -> Policy:
    """The share of an owner with several keys: of each thing what the most generous of them says."""
    found = list(policies)
    if not found:
        return Policy()
    bounds = [one.in_progress for one in found]
    return Policy(
        limits=tuple(_widest_limits(found)),
        in_progress=None if None in bounds else max(bound for bound in bounds if bound is not None),
        weight=max(one.weight for one in found),
    )


def _widest_limits(policies: list[Policy]) -> Iterable[Limit]:
    # A key without a limit of some kind may use as much as it likes, and so may its owner.
    each = [{limit.name: limit for limit in one.limits if limit.wait} for one in policies]
    for name in each[0]:
        same = [limits[name] for limits in each if name in limits]
        if len(same) == len(each):
            amount, burst = max(limit.amount for limit in same), max(limit.burst for limit in same)
            yield msgspec.structs.replace(same[0], amount=amount, burst=burst)
