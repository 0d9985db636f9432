-- claiming.lua: what claim.lua, turn.lua and help.lua share; all have the same first eight arguments.
local queue, worker, request, want = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local RETENTION_MS, MAX_DEATHS = ARGV[6], tonumber(ARGV[8])
local DEADLINE = string.format('%d', NOW + ARGV[5])
local WEIGHTS = {high = 16, normal = 4, low = 1}
local COST = 1 -- of a job, over WEIGHT of its user: both come with the tenants issue (design, section 5)
local q = at(queue)
local JOB, ID = P .. 'job:', id_of('')
local taken, leases, held, gone, depth = {}, {}, {}, {}, {}
local helping = false -- whether the worker runs another model than the queue's: help.lua
local budget = want + 1000 -- entries to look at: thousands of expired ones must not keep Redis busy in one call

local function answer(held_now, deliveries, suspect, ticket, work)
  local n = #taken
  taken[n + 1], taken[n + 2], taken[n + 3], taken[n + 4], taken[n + 5] = held_now, deliveries, suspect, ticket, work
end

-- How often a job was delivered, and whether it must run alone: whoever was running beside a job that kills its
-- worker died with it, so before the death that would park it, it does.
local function past_of(history, ticket)
  local _, deliveries = string.gsub(history, 'p', '')
  local deaths = tonumber(string.match(ticket, '^%d+ %d+ (%d+)'))
  return deliveries, deaths > 0 and deaths >= MAX_DEATHS - 1 and 1 or 0
end

local function lease(id, job)
  local ticket, history, work = job[1], job[2], job[3]
  local number, deliveries, suspect = '2', 0, 0
  if #history > 15 then -- it was scheduled or delivered before
    number = next_number(id, history)
    deliveries, suspect = past_of(history, ticket)
  end
  observe(q, 'wait', NOW - since_of(history))
  wait_no_more(id, string.match(ticket, ',(%w+) ') or '')
  local after, step = move(id, q, history, 'p', number)
  redis.call('HSET', JOB .. id, 'history', after, 'worker', worker)
  local member = id .. ':' .. step
  append(leases, DEADLINE, member)
  append(held, member)
  answer(member, deliveries + 1, suspect, ticket, work)
end

-- Whether an answer was begun: only the model that began it can go on with it.
local function has_begun(id) return redis.call('EXISTS', P .. 'tokens:' .. id) == 1 end

-- Lease a job that was taken out of its line; 1 if it was, 0 if it must not be run.
local function take(id, entry, lane)
  budget = budget - 1
  local job = redis.call('HMGET', JOB .. id, 'ticket', 'history', 'work')
  if not job[1] then
    park('entry-' .. entry .. '-' .. string.sub(id, 1, 64), queue, 'orphan: no record of this job')
    gone[lane] = (gone[lane] or 0) + 1
  elseif code_of(job[2]) == 'q' then
    if string.sub(job[1], 1, 13) > NOW_TEXT then
      if helping and has_begun(id) then
        redis.call('RPUSH', q .. lane .. ':returned', id)
        return 0
      end
      lease(id, job)
      return 1
    end
    gone[lane] = (gone[lane] or 0) + 1
    end_job(id, 'e', 'expired', 'its time to live ended before a worker was free', RETENTION_MS, true, true)
  end
  return 0
end

local function next_returned(key)
  if not helping then return redis.call('LPOP', key) end
  for _, id in ipairs(redis.call('LRANGE', key, 0, 999)) do
    if not has_begun(id) then
      redis.call('LREM', key, 1, id)
      return id
    end
  end
end

local function take_returned(lane, k)
  local got = 0
  while got < k and budget > 0 do
    local id = next_returned(q .. lane .. ':returned')
    if not id then return got end
    got = got + take(id, 'returned', lane)
    if taken[#taken - 2] == 1 then budget = 0 end -- it must run alone: hand out nothing behind it
  end
  return got
end

-- Take n jobs from the front of a user's stream. One more than wanted is read: it says where to cut.
local function read(lane, user, n)
  local stream = stream_of(q, lane, user)
  local entries = redis.call('XRANGE', stream, '-', '+', 'COUNT', n + 1)
  local more = entries[n + 1]
  if more then
    redis.call('XTRIM', stream, 'MINID', more[1])
    entries[n + 1] = nil
  else
    redis.call('DEL', stream)
    redis.call('ZREM', q .. lane .. ':users', user)
  end
  return entries, more
end

-- Share k picks among users in virtual time: the lowest goes first and moves on by its job's cost.
local function share(users, k)
  local order, picks = {}, {}
  for i = 1, #users, 2 do append(order, {user = users[i], time = tonumber(users[i + 1]), n = 0}) end
  for i, user in ipairs(order) do picks[i] = user end
  if #order == 1 then order[1].n = k return picks end
  for _ = 1, k do
    local user = table.remove(order, 1)
    user.n = user.n + 1
    local time, place = user.time + user.n * COST, #order
    while place > 0 and order[place].time + order[place].n * COST > time do place = place - 1 end
    table.insert(order, place + 1, user)
  end
  return picks
end

local function take_users(lane, k)
  local got, key, now_at = 0, q .. lane .. ':users', nil
  while got < k and budget > 0 do
    local users = redis.call('ZRANGE', key, 0, k - got - 1, 'WITHSCORES')
    if #users == 0 then break end
    local moved = {}
    for _, user in ipairs(share(users, k - got)) do
      if user.n > 0 then
        local entries, more = read(lane, user.user, user.n)
        local ran = 0
        for _, entry in ipairs(entries) do ran = ran + take(ID .. entry[2][2], entry[1], lane) end
        got = got + ran
        -- The clock is where the last served user stands now. Were it where he stood before, a user who leaves and
        -- comes back with one job at a time would always be first.
        if ran > 0 then now_at = math.max(now_at or 0, user.time + ran * COST) end
        if more then append(moved, user.time + #entries * COST, user.user) end
      end
    end
    if #moved > 0 then redis.call('ZADD', key, 'XX', unpack(moved)) end
  end
  return got, now_at
end

-- Up to k jobs of one lane: those given back first.
local function take_lane(lane, k, clocks)
  local got = take_returned(lane, k)
  local more, now_at = take_users(lane, k - got)
  clocks[lane] = now_at or clocks[lane]
  depth[lane] = depth[lane] - got - more - (gone[lane] or 0)
  gone[lane] = nil
  return got + more
end

-- How many of n each lane may give: smooth weighted round robin over the lanes that have work, with what is left
-- over kept for the next call, so that 16:4:1 holds however small the claims are.
local function portions(lanes, credit, n)
  local out, total = {}, 0
  for _, lane in ipairs(lanes) do out[lane] = 0 total = total + WEIGHTS[lane] end
  if #lanes == 1 then out[lanes[1]] = n return out end
  for _ = 1, n do
    local best
    for _, lane in ipairs(lanes) do
      credit[lane] = credit[lane] + WEIGHTS[lane]
      if not best or credit[lane] > credit[best] then best = lane end
    end
    credit[best] = credit[best] - total
    out[best] = out[best] + 1
  end
  return out
end

local function has_work(lane)
  return redis.call('EXISTS', q .. lane .. ':users', q .. lane .. ':returned') > 0
end

local function any_work()
  local keys = {}
  for _, lane in ipairs(LANES) do append(keys, q .. lane .. ':users', q .. lane .. ':returned') end
  return redis.call('EXISTS', unpack(keys)) > 0
end

-- Jobs a second over about half a minute, for a truthful Retry-After.
local function rate_after(rate, before, got)
  local dt = math.max(1, NOW - before)
  local weight = 1 - math.exp(-dt / 30000)
  return rate + weight * (got * 1000 / dt - rate)
end

-- The lanes that have work. Counters that a loss of Redis' data put wrong come right as soon as a lane is empty.
local function lanes_with_work(meta, credit, writes)
  local lanes = {}
  local some = any_work()
  for i, lane in ipairs(LANES) do
    credit[lane], depth[lane] = tonumber(meta[i] or 0), tonumber(meta[i + 3] or 0)
    if some and has_work(lane) then
      append(lanes, lane)
    elseif credit[lane] ~= 0 or depth[lane] ~= 0 then
      credit[lane] = 0
      append(writes, 'credit:' .. lane, 0)
      append(writes, 'depth:' .. lane, 0)
    end
  end
  return lanes
end

local function claim()
  if want == 0 then return end
  local meta = redis.call('HMGET', q .. 'meta', 'credit:high', 'credit:normal', 'credit:low', 'depth:high',
    'depth:normal', 'depth:low', 'rate', 'claimed')
  local credit, clocks, writes, got = {}, {}, {}, 0
  local lanes = lanes_with_work(meta, credit, writes)
  if #lanes == 0 and #writes == 0 then return end
  even_when_full()
  local found = lanes
  while got < want and budget > 0 and #lanes > 0 do
    local portion, more = portions(lanes, credit, want - got), {}
    for _, lane in ipairs(lanes) do
      local n = portion[lane] > 0 and take_lane(lane, portion[lane], clocks) or 0
      got = got + n
      if n == portion[lane] then
        append(more, lane)
      elseif budget > 0 then -- nothing is left in it
        credit[lane], depth[lane] = 0, helping and redis.call('LLEN', q .. lane .. ':returned') or 0
      end
    end
    lanes = more
  end
  for _, lane in ipairs(found) do
    append(writes, 'credit:' .. lane, credit[lane])
    append(writes, 'depth:' .. lane, depth[lane])
    if clocks[lane] then append(writes, 'clock:' .. lane, clocks[lane]) end
  end
  if got > 0 then
    append(writes, 'rate', rate_after(tonumber(meta[7] or 0), tonumber(meta[8] or NOW), got))
    append(writes, 'claimed', NOW_TEXT)
    redis.call('ZADD', q .. 'leases', unpack(leases))
    redis.call('SET', q .. 'claimed:' .. worker, request .. ' ' .. table.concat(held, ' '), 'PX', 600000)
  end
  redis.call('HSET', q .. 'meta', unpack(writes))
  if got == want or budget <= 0 then ring(q) end -- the baton: perhaps there is more, for another worker
end

-- The jobs of the claim whose reply was lost, as far as they are still this worker's.
local function again(kept)
  for member in string.gmatch(string.sub(kept, #request + 2), '%S+') do
    local id, step = of_lease(member)
    local job = redis.call('HMGET', JOB .. id, 'ticket', 'history', 'work')
    if job[1] and is_last(job[2], step) then
      local deliveries, suspect = past_of(job[2], job[1])
      answer(member, deliveries, suspect, job[1], job[3])
    end
  end
end

local function claim_or_repeat()
  local kept = redis.call('GET', q .. 'claimed:' .. worker)
  if kept and string.match(kept, '^%S+') == request then again(kept) else claim() end
end
