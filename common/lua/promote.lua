-- promote: scheduled jobs whose time has come join their user's stream, and held owners their lanes.
-- KEYS[1] shard prefix
-- ARGV    most jobs in one call, events_kept
-- returns {jobs moved, milliseconds until the next is due or to be looked at (-1: none)}
-- atomic because a due job must be moved once, however many schedulers look.
-- include job.lua
-- Whether a job that counts as running is: a worker has it, or it was given back and goes first.
local function is_running(history)
  local code = string.sub(history, -14, -14)
  return code == 'p' or code == 'q' and string.find(history, '%d+p%d+ %d+q%d+$') ~= nil
end

-- Owners whose time to be looked at has come. One whose jobs' ends were missed (Redis lost data) gets his room back.
local function look_at_held(most)
  for _, owner in ipairs(redis.call('ZRANGEBYSCORE', P .. 'held', '-inf', NOW, 'LIMIT', 0, most)) do
    local running, limit = P .. 'running:' .. owner, owners().share_of(owner).most
    for _, short in ipairs(redis.call('SMEMBERS', running)) do
      local id = 'job_' .. string.match(P, '{(%x+)}') .. short
      local history = redis.call('HGET', P .. 'job:' .. id, 'history')
      if not history or not is_running(history) then redis.call('SREM', running, short) end
    end
    if limit and redis.call('SCARD', running) >= limit then
      redis.call('ZADD', P .. 'held', NOW + owners().LOOK_AGAIN_MS, owner)
    else
      owners().unhold(owner)
    end
  end
  return tonumber(redis.call('ZRANGE', P .. 'held', 0, 0, 'WITHSCORES')[2])
end

even_when_full()
local ids = redis.call('ZRANGEBYSCORE', P .. 'due', '-inf', NOW_TEXT, 'LIMIT', 0, ARGV[1])
for _, id in ipairs(ids) do
  local key = P .. 'job:' .. id
  local job = redis.call('HMGET', key, 'ticket', 'history', 'conversation')
  local ticket = job[1] and of_ticket(job[1])
  local first = job[3] and conversations().has_turn(conversations().conversation_of(ticket.user, job[3]))
  if first and first ~= short_of(id) then
    redis.call('ZADD', P .. 'due', NOW + conversations().TURN_LOOK_MS, id)
  elseif job[1] and code_of(job[2]) == 's' then
    local q = at(ticket.queue)
    enqueue(q, id, ticket.lane, ticket.user)
    redis.call('HSET', key, 'history', (move(id, q, job[2], 'q')))
    ready(q, ticket.lane, ticket.user)
    redis.call('ZREM', P .. 'due', id)
  else
    redis.call('ZREM', P .. 'due', id)
  end
end
local look_at = look_at_held(ARGV[1])
finish(ARGV[2])
local first = tonumber(redis.call('ZRANGE', P .. 'due', 0, 0, 'WITHSCORES')[2])
first = math.min(first or look_at or -1, look_at or first or -1)
return {#ids, first >= 0 and math.max(0, first - NOW) or -1}
