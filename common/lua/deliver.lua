-- deliver: hand a delivery worker what is due in the outbox, each with a lease: it comes back when that ends.
-- KEYS[1] shard prefix
-- ARGV    most deliveries, lease_ms
-- returns {per delivery {name, its record, flat}, milliseconds until the next is due (-1: none)}
-- atomic because a delivery must have its lease the moment it is taken, so that a worker that dies loses nothing.
-- include job.lua
even_when_full()
local LEASE_UNTIL = string.format('%d', NOW + ARGV[2])
local taken = {}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', P .. 'outbox', '-inf', NOW_TEXT, 'LIMIT', 0, ARGV[1])) do
  local key = P .. 'delivery:' .. name
  if redis.call('HEXISTS', key, 'event') == 1 then
    redis.call('HINCRBY', key, 'claims', 1)
    redis.call('ZADD', P .. 'outbox', LEASE_UNTIL, name)
    append(taken, {name, redis.call('HGETALL', key)})
  else
    redis.call('ZREM', P .. 'outbox', name) -- its record was lost with Redis' data
  end
end
local first = redis.call('ZRANGE', P .. 'outbox', 0, 0, 'WITHSCORES')[2]
return {taken, first and math.max(0, first - NOW) or -1}
