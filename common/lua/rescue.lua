-- rescue: jobs whose lease has ended go back to the front of their lane, or are parked after too many deaths.
-- KEYS[1] shard prefix
-- ARGV    most jobs per queue in one call, max_deaths, retention_ms, events_kept
-- returns {jobs moved, milliseconds until the next lease may end (-1: none)}
-- atomic because a lease that is renewed at this moment must either be renewed or be handed on, never both.
-- include job.lua
even_when_full()
local LIMIT, MAX_DEATHS, RETENTION_MS, EVENTS_KEPT = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local moved, next_at = 0, nil

local function rescue(q, queue, held)
  local id, step = of_lease(held)
  local key = P .. 'job:' .. id
  redis.call('ZREM', q .. 'leases', held)
  local job = redis.call('HMGET', key, 'ticket', 'history')
  if not job[1] or not is_last(job[2], step) then return end
  local ticket = of_ticket(job[1])
  ticket.deaths = ticket.deaths + 1
  redis.call('HSET', key, 'ticket', to_ticket(ticket))
  if ticket.deaths >= MAX_DEATHS then
    local reason = 'its worker died or fell silent ' .. ticket.deaths .. ' times while running it'
    end_job(id, 'f', 'poisoned', reason, RETENTION_MS)
    park(id, queue, 'poisoned: ' .. reason)
  else
    give_back(id, q, ticket.lane, job[2], next_number(id, job[2]))
    wait_on(id, ticket.api_key)
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
