-- position: how many jobs are expected to start before a waiting one, what it waits for, and how its queue stands.
-- KEYS[1] shard prefix
-- ARGV    id ('': only the queue), queue
-- returns {place, standing}. Of a job that is queued, place is {jobs before it, of them its user's own, of them in higher
--         lanes, of them in lower lanes, units of the jobs before it in its lane (as far as was looked; a sum), 1 if its
--         user had more than others of late, its units, 1 if something was foretold of it, {why its owner is
--         held: `held`}}; else empty.
--         Standing is {now (ms), live workers, their slots, loading workers, jobs in progress, waiting jobs of each lane,
--         users with such jobs in each lane,
--         pace, factors (flat: class, four numbers), and of some jobs in progress how long they have run and their units}.
--         Exact up to 128 waiting jobs, if none comes, none is held, and what they cost is guessed right; beyond, an
--         estimate from up to 1,000 jobs of its user and 256 users in its lane.
-- atomic because a place in a moving queue has a meaning only at one moment.
-- include job.lua
-- include lanes.lua
local RUNNING_SEEN, WORKERS_SEEN, OWN_SEEN, USERS_SEEN, TURNS = 16, 64, 1000, 256, 1000
local CLASSES = {} -- of forecasts: a lane and a stage, as `common/eta.py` has them
for _, lane in ipairs({'h', 'n', 'l'}) do
  for stage = 0, 7 do append(CLASSES, lane .. stage) end
end
local q = at(ARGV[2])
local tickets_left = 96

local function units_of(id)
  local ticket = redis.call('HGET', P .. 'job:' .. id, 'ticket')
  return ticket and of_ticket(ticket).units or 0
end

-- What n jobs need, going by the first few of them.
local function units_of_some(ids, n)
  local seen, sum = math.min(#ids, n, tickets_left), 0
  if seen == 0 then return 0 end
  for i = 1, seen do sum = sum + units_of(ids[i]) end
  tickets_left = tickets_left - seen
  return sum * n / seen
end

local function ids_of(stream, limit)
  local ids = {}
  for i, entry in ipairs(redis.call('XRANGE', stream, '-', '+', 'COUNT', limit)) do ids[i] = id_of(entry[2][2]) end
  return ids
end

-- How many of its user's jobs stand before one: from the front, else from the back, else about half way between.
local function own_before(stream, id)
  local ids = ids_of(stream, OWN_SEEN + 1)
  for i, other in ipairs(ids) do
    if other == id then return i - 1, ids end
  end
  local length, short = redis.call('XLEN', stream), short_of(id)
  for i, entry in ipairs(redis.call('XREVRANGE', stream, '+', '-', 'COUNT', OWN_SEEN)) do
    if entry[2][2] == short then return length - i, ids end
  end
  return math.floor(length / 2), ids
end

-- include order.lua

-- Jobs of its lane before it: its user's own, others, and what all of them need. `time` is where its user stands.
local function in_lane(lane, me, id, cost, time)
  local key = q .. lane .. ':returned'
  local back = redis.call('LPOS', key, id)
  if back then return 0, back, units_of_some(redis.call('LRANGE', key, 0, 31), back) end
  local others = redis.call('LLEN', key)
  local units = units_of_some(redis.call('LRANGE', key, 0, 31), others)
  local own, mine = own_before(stream_of(q, lane, me), id)
  units = units + units_of_some(mine, own)
  local step = step_of(cost, owners().share_of(me).weight)
  local users = redis.call('ZRANGE', q .. lane .. ':users', 0, USERS_SEEN - 1, 'WITHSCORES')
  local met = 0
  for i = 1, #users, 2 do
    local user, theirs = users[i], tonumber(users[i + 1])
    if user ~= me then
      met = met + 1
      local exact = (time + own * step - theirs) / step_of(cost, owners().share_of(user).weight)
      local turns = math.ceil(exact)
      if turns == exact and user < me then turns = turns + 1 end -- at the same time the name decides
      if turns > 0 then
        local stream = stream_of(q, lane, user)
        local n = math.min(turns, redis.call('XLEN', stream))
        others = others + n
        if tickets_left > 0 then units = units + units_of_some(ids_of(stream, 8), n) end
      end
    end
  end
  local all = redis.call('ZCARD', q .. lane .. ':users') - 1
  if all > met and met > 0 then
    others, units = math.floor(others * all / met), units * all / met
  end
  return own, others, units
end

-- Jobs of other lanes that start before number `n` (from 0) of this one: the lanes take turns as in a claim.
local function beside(lane, n, meta)
  local lanes, credit, left = {}, {}, {}
  local got = {high = 0, normal = 0, low = 0}
  for _, other in ipairs(LANES) do
    credit[other], left[other] = tonumber(meta['credit:' .. other] or 0), tonumber(meta['depth:' .. other] or 0)
    if other == lane then left[other] = math.max(left[other], n + 1) end
    if left[other] > 0 then append(lanes, other) end
  end
  local contended = tonumber(meta.contended or 0)
  for i = 0, TURNS - 1 do
    if #lanes == 1 then return got end
    local best, total, weights = nil, 0, lane_weights(contended + i)
    for _, other in ipairs(lanes) do
      total = total + weights[other]
      credit[other] = credit[other] + weights[other]
      if not best or credit[other] > credit[best] then best = other end
    end
    if best == lane and got[lane] == n then return got end
    credit[best], got[best], left[best] = credit[best] - total, got[best] + 1, left[best] - 1
    if left[best] == 0 then
      for k, other in ipairs(lanes) do if other == best then table.remove(lanes, k) break end end
    end
  end
  local more = n - got[lane]
  for _, other in ipairs(lanes) do
    if other ~= lane then
      got[other] = got[other] + math.min(left[other], math.floor(more * LASTING[other] / LASTING[lane]))
    end
  end
  return got
end

-- Why an owner's jobs wait for himself: {when his limit has room again (ms; 0: he is not held), his jobs in progress
-- when those are as many as may be}.
local function held(owner)
  local look_at = tonumber(redis.call('ZSCORE', P .. 'held', owner) or 0)
  local most = look_at > 0 and owners().share_of(owner).terms.most
  local running = most and tonumber(redis.call('HGET', P .. 'standing', 'running ' .. owner) or 0) or 0
  return {look_at, most and running >= most and running or 0}
end

-- Where a user stands in a lane; who is not in the line begins at its clock.
local function tag_of(lane, user, meta)
  return tonumber(redis.call('ZSCORE', q .. lane .. ':users', user) or redis.call('ZSCORE', q .. lane .. ':aside', user) or
    meta['clock:' .. lane] or 0)
end

-- 1 if a user stands behind the lane's first by a job of his or more.
local function is_behind(lane, user, cost, meta)
  local first = tonumber(redis.call('ZRANGE', q .. lane .. ':users', 0, 0, 'WITHSCORES')[2] or 0)
  return tag_of(lane, user, meta) >= first + step_of(cost, owners().share_of(user).weight) and 1 or 0
end

-- An estimate of what `order_until` returns, by what jobs cost on average, and `is_behind`.
local function roughly(id, lane, user, meta)
  local cost = guess_of(meta)(0)
  local own, others, units = in_lane(lane, user, id, cost, tag_of(lane, user, meta))
  local got = beside(lane, own + others, meta)
  got[lane] = own + others
  return got, own, units, is_behind(lane, user, cost, meta)
end

local function place(meta)
  local job = ARGV[1] ~= '' and redis.call('HMGET', P .. 'job:' .. ARGV[1], 'ticket', 'history', 'eta') or {}
  if not job[1] or code_of(job[2]) ~= 'q' then return {} end
  local ticket = of_ticket(job[1])
  local lane, me = ticket.lane, ticket.user
  local got, own, units = nil, nil, nil
  if (meta['depth:high'] or 0) + (meta['depth:normal'] or 0) + (meta['depth:low'] or 0) <= SMALL then
    got, own, units = order_until(ARGV[1], lane, me, meta)
  end
  local over
  if got then
    over = is_behind(lane, me, guess_of(meta)(0), meta)
  else
    got, own, units, over = roughly(ARGV[1], lane, me, meta)
  end
  local above, below, seen = 0, 0, false
  for _, other in ipairs(LANES) do
    if other == lane then seen = true
    elseif seen then below = below + got[other]
    else above = above + got[other] end
  end
  return {got.high + got.normal + got.low, own, above, below, math.floor(units), over, ticket.units, job[3] and 1 or 0,
    held(me)}
end

-- Slots of live workers. One that helps from elsewhere counts only where the queue has none of its own.
local function slots_of(workers)
  local own, helping, seen = 0, 0, math.min(#workers, WORKERS_SEEN)
  for i = 1, seen do
    local about = redis.call('GET', q .. 'worker:' .. workers[i]) or ''
    local slots = tonumber(string.match(about, '"takes":(%d+)') or string.match(about, '"slots":(%d+)') or 1)
    if string.find(workers[i], '@', 1, true) then helping = helping + slots else own = own + slots end
  end
  local slots = own > 0 and own or helping
  return seen > 0 and math.ceil(slots * #workers / seen) or 0
end

local function running()
  local out = {}
  for _, held in ipairs(redis.call('ZRANGE', q .. 'leases', 0, RUNNING_SEEN - 1)) do
    local id, step = of_lease(held)
    append(out, NOW - tonumber(string.sub(step, -13)), units_of(id))
  end
  return out
end

local function users_in(lane) return redis.call('ZCARD', q .. lane .. ':users') end

local function standing(meta)
  local workers = redis.call('ZRANGEBYSCORE', q .. 'workers', NOW, '+inf')
  local factors = {}
  for _, class in ipairs(CLASSES) do
    if meta['eta:' .. class] then append(factors, class, meta['eta:' .. class]) end
  end
  local depth = {}
  for _, lane in ipairs(LANES) do append(depth, tonumber(meta['depth:' .. lane] or 0)) end
  return {NOW, #workers, slots_of(workers), redis.call('ZCOUNT', q .. 'loading', NOW, '+inf'),
    redis.call('ZCARD', q .. 'leases'), depth[1], depth[2], depth[3],
    users_in('high'), users_in('normal'), users_in('low'), meta.runs or '', factors, running()}
end

local fields, meta = {'runs', 'pace:jobs', 'pace:units', 'pace:gpu', 'contended'}, {}
for _, lane in ipairs(LANES) do append(fields, 'depth:' .. lane, 'credit:' .. lane) append(fields, 'clock:' .. lane) end
for _, class in ipairs(CLASSES) do append(fields, 'eta:' .. class) end
for i, value in ipairs(redis.call('HMGET', q .. 'meta', unpack(fields))) do meta[fields[i]] = value end
return {place(meta), standing(meta)}
