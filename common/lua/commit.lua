-- commit: store how a batch of runs ended: fence, result or error, state event, and the lease removed.
-- KEYS[1] shard prefix
-- ARGV    queue, retention_ms, events_kept, then 6 per job: lease, outcome (completed | incomplete | failed | retry |
--         release), number of its last event plus one, body (result or error, JSON), usage (JSON) or a retry's delay in
--         ms, its part of its worker's busy time in ms
-- returns per job: 'stored', 'mine' (this very commit was stored before) or 'lost' (the lease is another's now)
-- atomic because a worker that lost its lease must change nothing, and a result, its event and the end of the
--         job's place in the queue must appear together.
-- include job.lua
local function main()
-- include pace.lua
-- include committing.lua
commit_from(4, ARGV[2])
finish(ARGV[3])
return answers
end
return main()
