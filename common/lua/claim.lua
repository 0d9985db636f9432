-- claim: hand a worker up to `want` ready jobs: lanes by weight, users by virtual time, and a lease on each.
-- KEYS[1] shard prefix
-- ARGV    queue, worker, request number, want, lease_ms, retention_ms, events_kept, max_deaths
-- returns 5 per job, flat: lease, number of deliveries, 1 if it must run alone, ticket, work
-- atomic because a job must have its lease the moment it leaves the queue. The request number makes a retry after a
--         lost reply return the same jobs; without it they would stand in progress with nobody to run them.
-- include job.lua
even_when_full()
local queue, worker, request, want = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local RETENTION_MS, EVENTS_KEPT, MAX_DEATHS = ARGV[6], ARGV[7], tonumber(ARGV[8])
local DEADLINE = string.format('%d', NOW + ARGV[5])
local WEIGHTS = {high = 16, normal = 4, low = 1}
local COST = 1 -- of a job, over WEIGHT of its user: both come with the tenants issue (design, section 5)
local q = at(queue)
local JOB = P .. 'job:'
local taken, leases, held = {}, {}, {}
local budget = want + 1000 -- entries to look at: thousands of expired ones must not keep Redis busy in one call

local function answer(held_now, deliveries, suspect, ticket, work)
  local n = #taken
  taken[n + 1], taken[n + 2], taken[n + 3], taken[n + 4], taken[n + 5] = held_now, deliveries, suspect, ticket, work
end

-- Whoever was running beside a job that kills its worker died with it. Before the last time, it runs alone.
local function is_suspect(deaths)
  return deaths ~= '0' and tonumber(deaths) >= MAX_DEATHS - 1
end

local function deliveries_in(history)
  local _, n = string.gsub(history, 'p', '')
  return n
end

local function lease(id, job, deaths)
  local ticket, history, work = job[1], job[2], job[3]
  local number = 2
  if #history > 15 then number = next_number(id, history) end -- it was delivered or scheduled before
  observe(q, 'wait', NOW - since_of(history))
  local after, step = move(id, q, history, 'p', number)
  redis.call('HSET', JOB .. id, 'history', after, 'worker', worker)
  local member = id .. ':' .. step
  append(leases, DEADLINE, member)
  append(held, member)
  answer(member, #history > 15 and deliveries_in(after) or 1, is_suspect(deaths) and 1 or 0, ticket, work)
end

-- Lease a job that was just read; 1 if it was, 0 if it must not be run.
local function take(id, entry, stream, lane)
  budget = budget - 1
  local job = redis.call('HMGET', JOB .. id, 'ticket', 'history', 'work')
  if not job[1] then
    park('entry-' .. entry .. '-' .. string.sub(id, 1, 64), queue, 'orphan: no record of this job')
    redis.call('HINCRBY', q .. 'meta', 'depth:' .. lane, -1)
    redis.call('XDEL', stream, entry)
    return 0
  end
  local expires, its_entry, deaths = string.match(job[1], '^(%d+) (%S+) %d+ (%d+)')
  local code = code_of(job[2])
  if its_entry ~= entry or TERMINAL[code] then
    redis.call('XDEL', stream, entry)
  elseif code == 'q' then
    if tonumber(expires) > NOW then
      lease(id, job, deaths)
      return 1
    end
    end_job(id, 'e', 'expired', 'its time to live ended before a worker was free', RETENTION_MS)
  end -- in progress: a recreated group reads again what somebody is running, leave it alone
  return 0
end

-- Those given back. One that waits no more was read again by a recreated group, and is somebody's already.
local function take_returned(lane, k)
  local got = 0
  while got < k and budget > 0 do
    local id = redis.call('LPOP', q .. lane .. ':returned')
    if not id then return got end
    local job = redis.call('HMGET', JOB .. id, 'ticket', 'history')
    if job[1] and code_of(job[2]) == 'q' then
      local ticket = of_ticket(job[1])
      got = got + take(id, ticket.entry, stream_of(q, lane, ticket.user), lane)
      -- Its worker is to run it alone: hand out nothing behind it.
      if is_suspect(ticket.deaths) then budget = 0 end
    end
  end
  return got
end

-- Read n entries of one user's stream. NOACK: the lease set says who holds what; Redis' own list of pending entries
-- would be a second one, and cost as much again. A lost group is made again from the start; nothing is skipped.
local function read(stream, n)
  local reply = redis.pcall('XREADGROUP', 'GROUP', 'workers', 'all', 'COUNT', n, 'NOACK', 'STREAMS', stream, '>')
  if reply and reply.err then
    if redis.call('EXISTS', stream) == 0 then return {} end
    redis.call('XGROUP', 'CREATE', stream, 'workers', '0')
    reply = redis.call('XREADGROUP', 'GROUP', 'workers', 'all', 'COUNT', n, 'NOACK', 'STREAMS', stream, '>')
  end
  return reply and reply[1] and reply[1][2] or {}
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
        local stream = stream_of(q, lane, user.user)
        local entries = read(stream, user.n)
        local ran = 0
        for _, entry in ipairs(entries) do ran = ran + take(entry[2][2], entry[1], stream, lane) end
        got = got + ran
        -- The clock is where the last served user stands now. Were it where he stood before, a user who leaves and
        -- comes back with one job at a time would always be first.
        if ran > 0 then now_at = math.max(now_at or 0, user.time + ran * COST) end
        if #entries < user.n then
          redis.call('ZREM', key, user.user)
          drop_if_empty(q, lane, user.user, stream)
        else
          append(moved, user.time + #entries * COST, user.user)
        end
      end
    end
    if #moved > 0 then redis.call('ZADD', key, 'XX', unpack(moved)) end
  end
  return got, now_at
end

-- Up to k jobs of one lane: those given back first.
local function take_lane(lane, k, writes)
  local got = take_returned(lane, k)
  local more, now_at = take_users(lane, k - got)
  if now_at then append(writes, 'clock:' .. lane, now_at) end
  got = got + more
  if got > 0 then redis.call('HINCRBY', q .. 'meta', 'depth:' .. lane, -got) end
  return got
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

-- Jobs a second over about half a minute, for a truthful Retry-After.
local function rate_after(rate, before, got)
  local dt = math.max(1, NOW - before)
  local weight = 1 - math.exp(-dt / 30000)
  return rate + weight * (got * 1000 / dt - rate)
end

local function claim()
  local meta = redis.call('HMGET', q .. 'meta', 'credit:high', 'credit:normal', 'credit:low', 'rate', 'claimed',
    'depth:high', 'depth:normal', 'depth:low')
  local credit, got = {high = tonumber(meta[1] or 0), normal = tonumber(meta[2] or 0), low = tonumber(meta[3] or 0)}, 0
  local writes = {}
  while got < want and budget > 0 do
    local lanes = {}
    for i, lane in ipairs(LANES) do
      if has_work(lane) then
        append(lanes, lane)
      else
        credit[lane] = 0
        -- Counters that Redis' loss of data put wrong come right as soon as the lane is empty.
        if got == 0 and (meta[5 + i] or '0') ~= '0' then append(writes, 'depth:' .. lane, 0) end
      end
    end
    if #lanes == 0 then break end
    local portion = portions(lanes, credit, want - got)
    for _, lane in ipairs(lanes) do
      if portion[lane] > 0 then got = got + take_lane(lane, portion[lane], writes) end
    end
  end
  if got > 0 then
    append(writes, 'rate', rate_after(tonumber(meta[4] or 0), tonumber(meta[5] or NOW), got))
    append(writes, 'claimed', NOW)
    for _, lane in ipairs(LANES) do append(writes, 'credit:' .. lane, credit[lane]) end
    redis.call('ZADD', q .. 'leases', unpack(leases))
  end
  if got == want or budget <= 0 then ring(q) end -- the baton: perhaps there is more, for another worker
  if #writes > 0 then redis.call('HSET', q .. 'meta', unpack(writes)) end
  redis.call('SET', q .. 'claimed:' .. worker, request .. ' ' .. table.concat(held, ' '), 'PX', 600000)
end

-- The jobs of the claim whose reply was lost, as far as they are still this worker's.
local function again(kept)
  for member in string.gmatch(string.sub(kept, #request + 2), '%S+') do
    local id, step = of_lease(member)
    local job = redis.call('HMGET', JOB .. id, 'ticket', 'history', 'work')
    if job[1] and is_last(job[2], step) then
      answer(member, deliveries_in(job[2]), is_suspect(of_ticket(job[1]).deaths) and 1 or 0, job[1], job[3])
    end
  end
end

local kept = redis.call('GET', q .. 'claimed:' .. worker)
if kept and string.match(kept, '^%S+') == request then again(kept) else claim() end
finish(EVENTS_KEPT)
return taken
