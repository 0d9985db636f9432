-- claim: hand a worker up to `want` ready jobs: lanes by weight, users by virtual time, and a lease on each.
-- KEYS[1] shard prefix
-- ARGV    queue, worker, request number, want, lease_ms, retention_ms, events_kept
-- returns per job: {id, claims, attempts, sequence number, entry, lane, user, timeout_ms, work, max_attempts, suspect}
-- atomic because a job must have its lease the moment it leaves the queue. The request number makes a retry after a
--         lost reply return the same jobs; without it they would stand in progress with nobody to run them.
-- include job.lua
even_when_full()
local queue, worker, request, want = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local LEASE_MS, RETENTION_MS, EVENTS_KEPT = tonumber(ARGV[5]), ARGV[6], ARGV[7]
local WEIGHTS = {high = 16, normal = 4, low = 1}
local COST = 1 -- of a job, over WEIGHT of its user: both come with the tenants issue (design, section 5)
local q = at(queue)
local FIELDS = {'state', 'claims', 'attempts', 'work', 'timeout', 'history', 'expires', 'user', 'entry', 'tries',
  'suspect'}
local taken, leases, held = {}, {}, {}
local budget = want + 1000 -- entries to look at: thousands of expired ones must not keep Redis busy in one call

local function answer(id, job, lane, seq)
  return {id, tonumber(job[2] or 0), tonumber(job[3] or 0), seq, job[9], lane, job[8], tonumber(job[5]), job[4],
    tonumber(job[10]), tonumber(job[11] or 0)}
end

local function lease(id, job, lane)
  local claims = (job[2] or 0) + 1
  job[2] = claims
  local seq, since = last_step(job[6])
  seq = seq + 1
  if claims > 1 then seq = next_seq(id, job[6]) end
  redis.call('HSET', P .. 'job:' .. id, 'state', 'in_progress', 'claims', claims, 'worker', worker,
    'history', move(id, q, job[6], 'in_progress', seq))
  observe(q, 'wait', NOW - since)
  local member = id .. ':' .. claims
  append(leases, NOW + LEASE_MS, member)
  append(held, member)
  append(taken, answer(id, job, lane, seq))
end

-- Lease a job that was just read; 1 if it was, 0 if it must not be run.
local function take(id, entry, stream, lane)
  budget = budget - 1
  local job = redis.call('HMGET', P .. 'job:' .. id, unpack(FIELDS))
  local waits = job[1] == 'queued' and job[9] == entry -- with another entry it was given back while its group was lost
  if waits and tonumber(job[7]) > NOW then
    lease(id, job, lane)
    return 1
  end
  if waits then
    end_job(id, 'expired', 'expired', 'its time to live ended before a worker was free', RETENTION_MS)
  elseif job[1] == 'in_progress' and job[9] == entry then
    return 0 -- a recreated group reads again what somebody is running: leave it alone
  else
    if not job[1] then
      park('entry-' .. entry .. '-' .. string.sub(id, 1, 64), queue, 'orphan: no record of this job')
      redis.call('HINCRBY', q .. 'meta', 'depth:' .. lane, -1)
    end
    redis.call('XACK', stream, 'workers', entry)
    redis.call('XDEL', stream, entry)
  end
  return 0
end

local function take_returned(lane, k)
  local got = 0
  while got < k and budget > 0 do
    local id = redis.call('LPOP', q .. lane .. ':returned')
    if not id then return got end
    local place = redis.call('HMGET', P .. 'job:' .. id, 'user', 'entry', 'suspect')
    if place[1] then
      local stream = stream_of(q, lane, place[1])
      redis.pcall('XCLAIM', stream, 'workers', worker, 0, place[2], 'JUSTID')
      local ran = take(id, place[2], stream, lane)
      got = got + ran
      if ran == 1 and place[3] then budget = 0 end -- its worker is to run it alone: hand out nothing behind it
    end
  end
  return got
end

-- Read n entries of one user's stream. A lost group is made again from the start; nothing is skipped.
local function read(stream, n)
  local reply = redis.pcall('XREADGROUP', 'GROUP', 'workers', worker, 'COUNT', n, 'STREAMS', stream, '>')
  if reply and reply.err then
    if redis.call('EXISTS', stream) == 0 then return {} end
    redis.call('XGROUP', 'CREATE', stream, 'workers', '0')
    reply = redis.call('XREADGROUP', 'GROUP', 'workers', worker, 'COUNT', n, 'STREAMS', stream, '>')
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
          drop_if_empty(q, lane, user.user)
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
    local id, claims = string.match(member, '^(.*):(%d+)$')
    local job = redis.call('HMGET', P .. 'job:' .. id, unpack(FIELDS))
    local lane = redis.call('HGET', P .. 'job:' .. id, 'lane')
    if job[1] == 'in_progress' and job[2] == claims then
      append(taken, answer(id, job, lane, next_seq(id, job[6]) - 1))
    end
  end
end

local kept = redis.call('GET', q .. 'claimed:' .. worker)
if kept and string.match(kept, '^%S+') == request then again(kept) else claim() end
finish(EVENTS_KEPT)
return taken
