-- promote: scheduled jobs whose time has come join their user's stream, and held owners their lanes.
-- KEYS[1] shard prefix
-- ARGV    most jobs in one call, events_kept
-- returns {jobs moved, milliseconds until the next is due or to be looked at (-1: none)}
-- atomic because a due job must be moved once, however many schedulers look.
-- include job.lua
-- include paid.lua
-- Count anew what bounded owners have running: jobs that a worker has, and those that were given back and go first.
-- What ended without a word (Redis lost data) counts no more. Once in a while: it looks at all of them.
local function count_running()
  if not redis.call('SET', P .. 'running:counted', NOW_TEXT, 'NX', 'PX', owners().LOOK_AGAIN_MS) then return end
  local counts = {}
  each_paid(function(_, _, ticket, charged)
    local user, bound = ticket.user, nil
    if charged then bound = owners().charge_of(charged).bound else bound = owners().share_of(user).terms.most end
    if bound then counts[user] = (counts[user] or 0) + 1 end
  end)
  for _, field in ipairs(redis.call('HKEYS', P .. 'standing')) do
    local user = string.match(field, '^running (.*)')
    if user and not counts[user] then redis.call('HDEL', P .. 'standing', field) end
  end
  for user, n in pairs(counts) do redis.call('HSET', P .. 'standing', 'running ' .. user, n) end
end

-- Owners whose time to be looked at has come. One whose jobs' ends were missed (Redis lost data) gets his room back.
local function look_at_held(most)
  for _, owner in ipairs(redis.call('ZRANGEBYSCORE', P .. 'held', '-inf', NOW, 'LIMIT', 0, most)) do
    local limit = owners().share_of(owner).terms.most
    if limit then count_running() end
    if limit and tonumber(redis.call('HGET', P .. 'standing', 'running ' .. owner) or 0) >= limit then
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
