-- promote: scheduled jobs whose time has come join their user's stream.
-- KEYS[1] shard prefix
-- ARGV    most jobs in one call, events_kept
-- returns {jobs moved, milliseconds until the next is due (-1: none)}
-- atomic because a due job must be moved once, however many schedulers look.
-- include job.lua
even_when_full()
local ids = redis.call('ZRANGEBYSCORE', P .. 'due', '-inf', NOW, 'LIMIT', 0, ARGV[1])
for _, id in ipairs(ids) do
  local key = P .. 'job:' .. id
  local job = redis.call('HMGET', key, 'state', 'queue', 'lane', 'user', 'history')
  if job[1] == 'scheduled' then
    local q = at(job[2])
    redis.call('HSET', key, 'state', 'queued', 'entry', enqueue(q, id, job[3], job[4]),
      'history', move(id, q, job[5], 'queued'))
    ready(q, job[3], job[4])
  end
  redis.call('ZREM', P .. 'due', id)
end
finish(ARGV[2])
local first = redis.call('ZRANGE', P .. 'due', 0, 0, 'WITHSCORES')[2]
return {#ids, first and math.max(0, first - NOW) or -1}
