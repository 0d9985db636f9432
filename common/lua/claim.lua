-- claim: hand a worker about `want` ready jobs: lanes by weight, users by virtual time, and a lease on each.
-- KEYS[1] shard prefix
-- ARGV    queue, worker, request number, want, lease_ms, retention_ms, events_kept, max_deaths, most that it may be where that
--         saves the end of a turn
-- returns 5 per job, flat: lease, number of deliveries, 1 if it must run alone, ticket, work
-- atomic because a job must have its lease the moment it leaves the queue. The request number makes a retry after a
--         lost reply return the same jobs; without it they would stand in progress with nobody to run them.
-- include job.lua
local function main()
-- include claiming.lua
claim_or_repeat()
finish(ARGV[7])
return taken
end
return main()
