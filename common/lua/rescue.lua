-- rescue: jobs whose lease has ended go back to the front of their lane, or are parked after too many deaths.
-- KEYS[1] shard prefix
-- ARGV    most jobs per queue in one call, max_deaths, retention_ms, events_kept
-- returns {jobs moved, milliseconds until the next lease may end (-1: none)}
-- atomic because a lease that is renewed at this moment must either be renewed or be handed on, never both.
-- include job.lua
even_when_full()
local LIMIT, MAX_DEATHS, RETENTION_MS, EVENTS_KEPT = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local moved, next_at = 0, nil

-- The consumer of a dead worker goes once nothing is pending under its name; never before (that would lose entries).
local function forget(stream, worker)
  local pending = redis.pcall('XPENDING', stream, 'workers', '-', '+', 1, worker)
  if not pending.err and #pending == 0 then redis.pcall('XGROUP', 'DELCONSUMER', stream, 'workers', worker) end
end

local function rescue(q, queue, held)
  local id, claims = string.match(held, '^(.*):(%d+)$')
  local key = P .. 'job:' .. id
  local job = redis.call('HMGET', key, 'state', 'claims', 'deaths', 'lane', 'user', 'entry', 'history', 'worker')
  if job[1] ~= 'in_progress' or job[2] ~= claims then
    redis.call('ZREM', q .. 'leases', held)
    return
  end
  local deaths = (job[3] or 0) + 1
  redis.call('HSET', key, 'deaths', deaths)
  if deaths >= MAX_DEATHS then
    local reason = 'its worker died or fell silent ' .. deaths .. ' times while running it'
    end_job(id, 'failed', 'poisoned', reason, RETENTION_MS)
    park(id, queue, 'poisoned: ' .. reason)
  else
    -- Whoever was running beside a job that kills its worker died with it. Before the last time, it runs alone.
    if deaths == MAX_DEATHS - 1 then redis.call('HSET', key, 'suspect', 1) end
    give_back(id, q, job[4], job[5], job[6], claims, job[7], next_seq(id, job[7]))
    forget(stream_of(q, job[4], job[5]), job[8])
  end
  moved = moved + 1
end

for _, queue in ipairs(redis.call('SMEMBERS', P .. 'queues')) do
  local q = at(queue)
  for _, held in ipairs(redis.call('ZRANGEBYSCORE', q .. 'leases', '-inf', NOW, 'LIMIT', 0, LIMIT)) do
    rescue(q, queue, held)
  end
  local first = redis.call('ZRANGE', q .. 'leases', 0, 0, 'WITHSCORES')[2]
  if first then next_at = math.min(next_at or first, first) end
  redis.call('ZREMRANGEBYSCORE', q .. 'workers', '-inf', NOW - 60000)
end
finish(EVENTS_KEPT)
return {moved, next_at and math.max(0, next_at - NOW) or -1}
