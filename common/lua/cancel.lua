-- cancel: end a job wherever it stands; its worker, if it has one, is told to stop.
-- KEYS[1] shard prefix
-- ARGV    id, retention_ms, events_kept
-- returns the state before, or false when there is no such job; a terminal job is left as it is
-- atomic because a job must not be claimed, committed or promoted between the look and the end.
-- include job.lua
even_when_full()
local before = end_job(ARGV[1], 'x', 'cancelled', 'cancelled by request', ARGV[2])
finish(ARGV[3])
return before
