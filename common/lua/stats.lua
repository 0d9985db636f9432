-- stats: how each queue of a shard stands. Reads only.
-- KEYS[1] shard prefix
-- ARGV    none
-- returns per queue: {name, depth high, normal, low, in progress, live workers, oldest wait in ms (-1: none), users
--         waiting, counters (flat)}. The oldest wait looks at 64 users of each lane, those to be served next.
-- atomic because numbers of one moment can be added up.
-- include job.lua
local out = {}

local function oldest(q, lane)
  local found
  for _, user in ipairs(redis.call('ZRANGE', q .. lane .. ':users', 0, 63)) do
    local entry = redis.call('XRANGE', stream_of(q, lane, user), '-', '+', 'COUNT', 1)[1]
    if entry then found = math.min(found or NOW, tonumber(string.match(entry[1], '^%d+'))) end
  end
  return found
end

for _, queue in ipairs(redis.call('SMEMBERS', P .. 'queues')) do
  local q, first, users = at(queue), nil, 0
  local depth = redis.call('HMGET', q .. 'meta', 'depth:high', 'depth:normal', 'depth:low')
  for _, lane in ipairs(LANES) do
    local since = oldest(q, lane)
    if since then first = math.min(first or since, since) end
    users = users + redis.call('ZCARD', q .. lane .. ':users')
  end
  append(out, {queue, tonumber(depth[1] or 0), tonumber(depth[2] or 0), tonumber(depth[3] or 0),
    redis.call('ZCARD', q .. 'leases'), redis.call('ZCOUNT', q .. 'workers', NOW, '+inf'),
    first and NOW - first or -1, users, redis.call('HGETALL', q .. 'counts')})
end
return out
