"""Every key name of Jarvis, in one place. All keys of a shard share one hash tag.

The scripts get the shard's prefix as KEYS[1] and append the same suffixes; this table is theirs too.
`P` is `<namespace>:{<shard>}:`, `Q` is `P q:<queue>:`.

    P job:<id>              hash    the job's record
    P tokens:<id>           stream  its token, segment and progress events, entry id = sequence number
    P events                stream  state events of the shard, capped; one entry per script call
    P ticks                 stream  the newest token events of all jobs, capped short; what followers hear first
    P index                 stream  every job's id, in order of submission
    P index:of:<owner>      stream  the same for the jobs of one owner that came with a key
    P ordinary              hash    the usual time to live, and how far the index was walked for jobs that have it
    P expiry                zset    id -> when its ttl ends (ms), of jobs with another time to live
    P due                   zset    id -> when a scheduled job becomes ready (ms)
    P parked                zset    parked id -> when (ms)
    P parked:info           hash    parked id -> why (JSON)
    P idem:<digest>         string  id and fingerprint of the request made with this key
    P bucket:<subject>      string  how full the limits of a key (k:<id>) are
    P waits:<key>           set     waiting jobs of a key that may have only so many
    P waits                 string  that there was ever such a key
    P usage:<day>           hash    sums of what was used, by key, model and owner; days since 1970
    P held                  zset    owner whose jobs wait for himself -> when to look at him again (ms)
    P held:<owner>          set     `<lane> <queue>` where he has work
    P standing              hash    `running <owner>`, of a bounded one -> how many of his jobs are in progress, or were
                                    given back; `<what>:<window ms> <owner>` -> when this limit of his will be all free
                                    again (microseconds), kept for a day after that
    P running:counted       string  while it is there, those were counted anew a moment ago
    P conversation:<user>:<key> list  its unfinished jobs in order (short ids); the first has its turn
    P queues                set     queues that have ever been used
    P readers               zset    id -> until when somebody reads its events as they come (ms)
    P file:<id>             string  a file's record (JSON); its content is in the blob store
    P files                 zset    every file's id, which sorts by time
    P files:of:<owner>      zset    the owner's files
    P files:owners          set     who has files
    P batch:<id>            hash    a batch's record
    P batch:<id>:parts      hash    number of a stretch of its lines -> where their answers are (JSON)
    P batches               zset    every batch's id, which sorts by time
    P batches:of:<owner>    zset    the owner's batches
    P batches:owners        set     who has batches
    P batches:open:<owner>  set     the owner's unfinished batches
    P batches:due           zset    unfinished batch -> when a process may take it (ms)
    P batches:bell          list    one token when there is a batch to take
    P batches:idem:<digest> string  id and fingerprint of the batch made with this key
    P api_key:<id>          hash    an API key's record, with the SHA-256 of its text
    P api_keys              zset    key's id -> when it was made (ms)
    P api_keys:of:<owner>   set     the owner's keys
    P api_keys:made         string  since when there are keys: while it is there, no call is served without one
    P api_keys:version      string  counts changes of keys
    P api_keys:dirty        hash    key -> version of a change that is not in `limits` and `shares` yet
    P limits                hash    key -> what submits are held against (JSON), on every shard
    P shares                hash    owner -> weight and what claims are held against (JSON), on every shard
    P audit                 stream  who did what to which key or other thing, capped
    P scheduler:bell        list    wakes a scheduler when something is due earlier than it thinks
    P outbox                zset    delivery -> when it is due; of one being tried, when that worker's lease ends (ms)
    P outbox:bell           list    one token when there is a new delivery: wakes one delivery worker
    P outbox:counts         hash    counters of attempts and ends
    P delivery:<name>       hash    what is to be told to whom, and how that stands
    P attempts:<name>       list    the delivery's last attempts (JSON)
    P deliveries            zset    delivery -> when it was made (ms)
    P owners                set     users with standing endpoints, on every shard
    P hooks:<user>          hash    endpoint -> its version and the event types it wants, on every shard
    P endpoint:<id>         string  a standing endpoint (JSON), on the shard of its user
    P endpoints             zset    endpoint -> when it was made (ms)
    P endpoints:<user>      set     the user's endpoints
    Q meta                  hash    depth, clock and credit of each lane; rate; jobs started since the queue was empty
                                    (`stretch`); how long jobs run and what that costs (`pace.lua`, `committing.lua`)
    Q <lane>:users          zset    owner -> virtual time (microseconds over weight); with waiting work, not held
    Q <lane>:aside          zset    the same of others, while it is ahead of the lane's clock
    Q <lane>:returned       list    ids given back by dead or draining workers, oldest first
    Q <lane>:u:<user>       stream  the user's waiting jobs, oldest first
    Q leases                zset    <id>:<step> -> when the lease ends (ms)
    Q bell                  list    one token when there is work: wakes one idle worker
    Q claimed:<worker>      string  number and jobs of the worker's last claim
    Q control:<worker>      list    what the worker must stop
    Q workers               zset    worker -> until when it counts as alive (ms)
    Q loading               zset    worker whose model is being loaded -> until when it counts as that (ms)
    Q worker:<worker>       hash    what it says of itself
    Q counts                hash    counters and histograms
"""

from __future__ import annotations

import hashlib
import secrets
import time
import zlib

from common.errors import NotFound

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]  # ten bits at a time


class Keys:
    """Key names and job ids for one namespace."""

    def __init__(self, namespace: str, shards: int) -> None:
        self.namespace = namespace
        self.shards = shards

    def prefixes(self) -> list[str]:
        """The prefix of every shard."""
        return [self.prefix(f"{number:02x}") for number in range(self.shards)]

    def prefix(self, shard: str) -> str:
        """Prefix of a shard's keys, with its hash tag."""
        return f"{self.namespace}:{{{shard}}}:"

    def named(self, shard: str) -> str | None:
        """The same of a shard by its name, as ids have it; None when there is no such shard."""
        known = len(shard) == 2 and all(c in "0123456789abcdef" for c in shard) and int(shard, 16) < self.shards
        return self.prefix(shard) if known else None

    def shard_of_queue(self, queue: str) -> str:
        """Which shard a queue lives on: fixed by its name alone, so that every process agrees."""
        return f"{zlib.crc32(queue.encode()) % self.shards:02x}"

    def of_queue(self, queue: str) -> str:
        """Prefix of the shard that holds a queue."""
        return self.prefix(self.shard_of_queue(queue))

    def of_job(self, job_id: str) -> str:
        """Prefix of the shard that holds a job. Raises NotFound when this is no job id of ours."""
        if not is_job_id(job_id) or int(job_id[4:6], 16) >= self.shards:
            raise NotFound(job_id)
        return self.prefix(job_id[4:6])

    def job(self, job_id: str) -> str:
        """A job's record. Raises NotFound when this is no job id of ours."""
        return f"{self.of_job(job_id)}job:{job_id}"

    def tokens(self, job_id: str) -> str:
        """A job's token, segment and progress events. Raises NotFound when this is no job id of ours."""
        return f"{self.of_job(job_id)}tokens:{job_id}"

    @property
    def files(self) -> str:
        """Prefix of the shard that holds all files and batches, of which there are few."""
        return self.prefix("00")

    def queue(self, queue: str) -> str:
        """Prefix of one queue's keys."""
        return f"{self.of_queue(queue)}q:{queue}:"


def new_job_id(shard: str) -> str:
    """`job_<2 hex shard><9 time><13 random>`: sorts by time, tells its shard, cannot be guessed."""
    return f"job_{shard}{_stamped()}"


def new_file_id() -> str:
    """`file-<9 time><13 random>`."""
    return f"file-{_stamped()}"


def new_batch_id() -> str:
    """`batch_<9 time><13 random>`."""
    return f"batch_{_stamped()}"


def line_job_id(shard: str, batch_id: str, line: int, number: int) -> str:
    """The id of job `number` of a batch's line: always the same, so that a line is never run as two jobs.

    As little to be guessed as the batch's own id, which goes into it.
    """
    digest = int.from_bytes(hashlib.sha256(f"{batch_id} {line} {number}".encode()).digest()[:9], "big")
    chance = "".join([_ALPHABET[digest >> s & 31] for s in range(0, 65, 5)])
    return f"job_{shard}{batch_id[6:15]}{chance}"


def _stamped() -> str:
    milliseconds = time.time_ns() // 1_000_000
    stamp = _ALPHABET[milliseconds >> 40 & 31] + "".join([_PAIRS[milliseconds >> s & 1023] for s in (30, 20, 10, 0)])
    bits = int.from_bytes(secrets.token_bytes(9), "big")
    chance = _ALPHABET[bits & 31] + "".join([_PAIRS[bits >> s & 1023] for s in (5, 15, 25, 35, 45, 55)])
    return stamp + chance


def is_file_id(text: str) -> bool:
    """Whether a text has the form of a file's id."""
    return len(text) == 27 and text.startswith("file-") and all(c in _ALPHABET for c in text[5:])


def is_batch_id(text: str) -> bool:
    """Whether a text has the form of a batch's id."""
    return len(text) == 28 and text.startswith("batch_") and all(c in _ALPHABET for c in text[6:])


def is_job_id(text: str) -> bool:
    """Whether a text has the form of a job id."""
    body = text[6:]
    return (
        len(text) == 28
        and text.startswith("job_")
        and all(c in "0123456789abcdef" for c in text[4:6])
        and all(c in _ALPHABET for c in body)
    )
