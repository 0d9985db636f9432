-- sample: send one endpoint an event about nothing, whatever it wants: with its tries used up, so once.
-- KEYS[1] shard prefix
-- ARGV    event's id without `evt_`, type, user, endpoint
-- returns 1
-- atomic because a delivery's record and its place in the outbox must appear together.
-- include job.lua
local name, endpoint = ARGV[1], ARGV[4]
local fields = {'tries', 1000, 'endpoint', endpoint, 'user', ARGV[3], 'subject', 'sample'}
post(name .. '-' .. string.sub(endpoint, 4), 'evt_' .. name, ARGV[2], fields)
return 1
