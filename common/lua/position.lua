-- position: how many jobs are expected to start before a waiting one, and what it waits for. Reads only.
-- KEYS[1] shard prefix
-- ARGV    id
-- returns {jobs before it, of them its user's own, of them in higher lanes, live workers}; empty unless it is queued.
--         Exact up to 1,000 jobs of its user and 256 users in its lane; beyond, an estimate from those.
-- atomic because a place in a moving queue has a meaning only at one moment.
-- include job.lua
local job = redis.call('HMGET', P .. 'job:' .. ARGV[1], 'ticket', 'history')
if not job[1] or code_of(job[2]) ~= 'q' then return {} end
local ticket = of_ticket(job[1])
local q, lane, me, short = at(ticket.queue), ticket.lane, ticket.user, short_of(ARGV[1])

local function waiting(stream, limit)
  return redis.call('XRANGE', stream, '-', '+', 'COUNT', limit)
end

local function own_before()
  local entries = waiting(stream_of(q, lane, me), 1001)
  for i, entry in ipairs(entries) do
    if entry[2][2] == short then return i - 1 end
  end
  return #entries
end

local function higher()
  local n = 0
  for _, other in ipairs(LANES) do
    if other == lane then return n end
    n = n + (tonumber(redis.call('HGET', q .. 'meta', 'depth:' .. other)) or 0)
  end
end

local returned = redis.call('LPOS', q .. lane .. ':returned', ARGV[1])
local own, others, above = 0, 0, higher()
if returned then
  others = returned
else
  others = redis.call('LLEN', q .. lane .. ':returned')
  own = own_before()
  local mine = tonumber(redis.call('ZSCORE', q .. lane .. ':users', me) or 0)
  local users = redis.call('ZRANGE', q .. lane .. ':users', 0, 255, 'WITHSCORES')
  for i = 1, #users, 2 do
    if users[i] ~= me then
      local before = math.ceil(mine + own - users[i + 1])
      if before > 0 then others = others + #waiting(stream_of(q, lane, users[i]), math.min(before, 1000)) end
    end
  end
  local all = redis.call('ZCARD', q .. lane .. ':users')
  if all > 256 then others = math.floor(others * (all - 1) / 255) end
end
return {own + others + above, own, above, redis.call('ZCOUNT', q .. 'workers', NOW, '+inf')}
