-- read: somebody reads the events of these jobs as they come: workers write them at once.
-- KEYS[1] shard prefix
-- ARGV    how long this holds (ms), then ids
-- returns nothing
-- atomic because the time is Redis' own, as it is for the emits that compare with it.
-- include job.lua
redis.call('ZREMRANGEBYSCORE', P .. 'readers', '-inf', NOW)
local places = {}
for i = 2, #ARGV do append(places, NOW + ARGV[1], ARGV[i]) end
redis.call('ZADD', P .. 'readers', unpack(places))
