-- turn: commit a batch of runs, then claim into the slots that this frees: one way to Redis instead of two.
-- KEYS[1] shard prefix
-- ARGV    the nine of claim, then 6 per job as for commit
-- returns {what commit returns, what claim returns}
-- atomic because the worker never holds more leases than it has slots: it gets new ones only with the old ones gone.
-- include job.lua
local function main()
-- include pace.lua
-- include committing.lua
-- include claiming.lua
commit_from(10, ARGV[6])
claim_or_repeat()
finish(ARGV[7])
return {answers, taken}
end
return main()
