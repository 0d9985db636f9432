-- promote: scheduled jobs whose time has come join their user's stream.
-- KEYS[1] shard prefix
-- ARGV    most jobs in one call, events_kept
-- returns {jobs moved, milliseconds until the next is due (-1: none)}
-- atomic because a due job must be moved once, however many schedulers look.
-- include job.lua
even_when_full()
local ids = redis.call('ZRANGEBYSCORE', P .. 'due', '-inf', NOW_TEXT, 'LIMIT', 0, ARGV[1])
for _, id in ipairs(ids) do
  local key = P .. 'job:' .. id
  local job = redis.call('HMGET', key, 'ticket', 'history')
  if job[1] and code_of(job[2]) == 's' then
    local ticket = of_ticket(job[1])
    local q = at(ticket.queue)
    enqueue(q, id, ticket.lane, ticket.user)
    redis.call('HSET', key, 'history', (move(id, q, job[2], 'q')))
    ready(q, ticket.lane, ticket.user)
  end
  redis.call('ZREM', P .. 'due', id)
end
finish(ARGV[2])
local first = redis.call('ZRANGE', P .. 'due', 0, 0, 'WITHSCORES')[2]
return {#ids, first and math.max(0, first - NOW) or -1}
