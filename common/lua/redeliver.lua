-- redeliver: a delivery is due now, whatever became of it, and its schedule begins anew. Its event keeps its id.
-- KEYS[1] shard prefix
-- ARGV    name
-- returns 1, or 0 when there is no such delivery (any more)
-- atomic because an attempt under way must not settle what begins anew: its claim is void.
-- include job.lua
local key = P .. 'delivery:' .. ARGV[1]
if redis.call('HEXISTS', key, 'event') == 0 then return 0 end
redis.call('HSET', key, 'status', 'pending', 'tries', 0)
redis.call('HDEL', key, 'ended')
redis.call('HINCRBY', key, 'claims', 1)
redis.call('PERSIST', key)
redis.call('PERSIST', P .. 'attempts:' .. ARGV[1])
redis.call('ZADD', P .. 'outbox', NOW_TEXT, ARGV[1])
if redis.call('EXISTS', P .. 'outbox:bell') == 0 then redis.call('RPUSH', P .. 'outbox:bell', '1') end
return 1
