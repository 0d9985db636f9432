-- list_end: an owner without files (or batches) is not among those who have some.
-- KEYS[1] shard prefix
-- ARGV    files or batches, owner
-- returns 1 if he was taken out, else 0
-- atomic because a file that comes between the look and the removal would be in a list that nobody tidies.
-- include job.lua
if redis.call('EXISTS', P .. ARGV[1] .. ':of:' .. ARGV[2]) == 1 then return 0 end
return redis.call('SREM', P .. ARGV[1] .. ':owners', ARGV[2])
