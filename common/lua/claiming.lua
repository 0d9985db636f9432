-- claiming.lua: what claim.lua, turn.lua and help.lua share; all have the same first nine arguments.
-- include lanes.lua
local queue, worker, request, want = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local RETENTION_MS, MAX_DEATHS = ARGV[6], tonumber(ARGV[8])
local spare = math.max(0, ARGV[9] - want) -- jobs that may be taken beyond those wanted, so that a turn is not cut short
local DEADLINE = string.format('%d', NOW + ARGV[5])
local PER_UNIT, PER_JOB = 0, 0 -- ms that the queue's jobs have cost of late
-- Where jobs are known to cost no more than LEAST_COST, to look at one owner more costs as much as a job does: some go in
-- a row of each. The longer there was always work, the more: one of who has the mean weight for so many jobs that were
-- started since, so that what he is ahead of his part stays small beside it; of nobody more than the most.
local STARTED_FOR_ONE, SHORT_IN_A_TURN, MOST_IN_A_TURN = 250, 32, 64
local in_a_turn = 1
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
  local deaths = tonumber(of_ticket(ticket).deaths)
  return deliveries, deaths > 0 and deaths >= MAX_DEATHS - 1 and 1 or 0
end

-- `charged` is what its owner has paid for it now, or nil for one that was given back.
local function lease(id, key, job, charged)
  local ticket, history, work = job[1], job[2], job[3]
  local number, deliveries, suspect = '2', 0, 0
  if #history > 15 then -- it was scheduled or delivered before
    number = next_number(id, history)
    deliveries, suspect = past_of(history, ticket)
  end
  observe(q, 'wait', NOW - since_of(history))
  if key_that_waits ~= false then wait_no_more(id, look_at_ticket(ticket).api_key) end
  local after, step = move(id, q, history, 'p', number)
  if charged then
    redis.call('HSET', key, 'history', after, 'worker', worker, 'charged', charged)
  else
    redis.call('HSET', key, 'history', after, 'worker', worker)
  end
  local member = id .. ':' .. step
  append(leases, DEADLINE, member)
  append(held, member)
  answer(member, deliveries + 1, suspect, ticket, work)
end

-- Whether an answer was begun: only the model that began it can go on with it.
local function has_begun(id) return redis.call('EXISTS', P .. 'tokens:' .. id) == 1 end

-- What each of an owner's next jobs, if they have so many units, moves his tag on by, as far as one can tell what it
-- costs, what stands in its record of that (nothing for the least), and how many he may have. Many of his jobs are alike.
local function size_up(owner, units)
  local cost = LEAST_COST
  if PER_JOB > 0 then cost = math.max(cost, units > 0 and PER_UNIT > 0 and units * PER_UNIT or PER_JOB) end
  if owner.bounded then owners().take_room(owner) end -- of those before, which were of another size
  owner.units, owner.each = units, step_of(cost, owner.weight)
  local share = owner.share
  owner.charged = cost ~= LEAST_COST and (share and owners().charged_as(share, q, cost, units) or tostring(cost))
  if owner.bounded then owner.room = owners().room_for(owner, units) end
end

-- Lease a job at the head of its line: 1 if it was taken, 0 if it must not be run, nil if its owner has to wait.
-- `owner` pays for it; none for a job that was given back, which is paid for.
local function take(id, entry, lane, owner)
  budget = budget - 1
  local key = JOB .. id
  local job = redis.call('HMGET', key, 'ticket', 'history', 'work')
  if not job[1] then
    park('entry-' .. entry .. '-' .. string.sub(id, 1, 64), queue, 'orphan: no record of this job')
    gone[lane] = (gone[lane] or 0) + 1
  elseif code_of(job[2]) == 'q' then
    if string.sub(job[1], 1, 13) > NOW_TEXT then
      if helping and has_begun(id) then
        redis.call('RPUSH', q .. lane .. ':returned', id)
        redis.call('HSET', key, 'charged', '0') -- who takes it from there takes it as paid
        return 0
      end
      if owner then
        local units = look_at_ticket(job[1]).units
        if units ~= owner.units or owner.room < 1 then
          size_up(owner, units)
          if owner.room < 1 then return nil end
        end
        owner.room, owner.took, owner.tag = owner.room - 1, owner.took + 1, owner.tag + owner.each
      end
      lease(id, key, job, owner and owner.charged)
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

-- The first n owners of a lane by their tags, of whose jobs k are wanted: {names, tags, shares, jobs in a turn of a weight
-- of 1, jobs to expect of one}; nil if there are none. Each has at least one job, or is held.
local function first_owners(lane, k, n)
  local found = redis.call('ZRANGE', q .. lane .. ':users', 0, n - 1, 'WITHSCORES')
  if #found == 0 then return nil end
  local names, tags, shares, weights, largest = {}, {}, false, #found / 2, 1
  for i = 1, #found / 2 do names[i], tags[i] = found[2 * i - 1], tonumber(found[2 * i]) end
  if redis.call('EXISTS', P .. 'shares') == 1 then
    shares = owners().look_at(names)
    weights = 0
    for i = 1, #names do
      local weight = shares[i].weight
      weights, largest = weights + weight, math.max(largest, weight)
    end
  end
  local turn = math.min(in_a_turn * #names / weights, MOST_IN_A_TURN / largest)
  return {names = names, tags = tags, n = n, shares = shares, turn = turn, chunk = math.max(k / weights, turn), k = k, lane = lane}
end

-- Number i of those, when it is his turn. All that it will ever have is there: a table that grows is made anew.
local function owner_of(line, i)
  local name, share = line.names[i], line.shares and line.shares[i]
  local weight, limits = share and share.weight or 1, share and owners().limits_of(share, q)
  return {name = name, tag = line.tags[i], turn = 0, stream = stream_of(q, line.lane, name), weight = weight,
    chunk = 1 + math.min(line.k, math.ceil(weight * line.chunk)), -- and the one that is first then
    most = (line.turn - 0.001) * LEAST_COST * TICKS, -- parts of jobs add up to less than a whole one
    share = share, limits = limits, bounded = share and (share.terms.most or limits[1]), held_until = false,
    entries = false, at = 1, last = false, dry = false, taken = 0, took = 0, cost = 0,
    units = false, each = 0, charged = false, room = math.huge}
end

-- The next entry of an owner's stream, without taking it; nil at its end.
local function peek(owner)
  local entry = owner.entries and owner.entries[owner.at]
  if entry or owner.dry then return entry end
  local entries = redis.call('XRANGE', owner.stream, owner.last and '(' .. owner.last or '-', '+', 'COUNT', owner.chunk)
  owner.dry = #entries < owner.chunk
  owner.entries, owner.at, owner.chunk = entries, 1, owner.chunk * 2
  return entries[1]
end

-- The first of a heap of owners has moved on: bring him to his place.
local function sift(heap)
  local n, i, owner = #heap, 1, heap[1]
  local tag, turn = owner.tag, owner.turn
  while 2 * i <= n do
    local child, at_child = heap[2 * i], 2 * i
    local other = heap[at_child + 1]
    if other and (other.tag < child.tag or other.tag == child.tag and other.turn < child.turn) then
      child, at_child = other, at_child + 1
    end
    if tag < child.tag or tag == child.tag and turn < child.turn then break end
    heap[i] = child
    i = at_child
  end
  heap[i] = owner
end

local function rise(heap, owner)
  local i = #heap + 1
  while i > 1 do
    local above = math.floor(i / 2)
    if heap[above].tag <= owner.tag then break end
    heap[i] = heap[above]
    i = above
  end
  heap[i] = owner
end

-- Take up to k jobs in virtual time: always the next one of the owner with the least tag, and with it those of his that
-- are in the same turn. The lane's clock is the tag with which the last turn began. Who was served waits in a heap for
-- his next turn, unless that comes after the `horizon`: then another one may be before him, and the caller looks again
-- if it wants more.
local function serve(lane, line, k)
  local heap, got, clock, some = {}, 0, nil, {}
  local horizon, others = #line.names == line.n and line.tags[line.n], #line.names > 1
  while got < k and budget > 0 do
    local fresh, again = line.tags[#some + 1], heap[1]
    if again and fresh and fresh <= again.tag then again = nil end
    if not again and not fresh then break end
    local owner = again or owner_of(line, #some + 1)
    if not again then some[#some + 1] = owner end
    local start, ran = owner.tag, nil
    local ends = in_a_turn > 1 and start + owner.most or start
    repeat
      local entry = peek(owner)
      ran = entry and take(ID .. entry[2][2], entry[1], lane, owner)
      if ran then
        owner.at, owner.last, owner.taken = owner.at + 1, entry[1], owner.taken + 1
      end
      if ran == 1 then
        got, clock, owner.turn = got + 1, start, got
        if got > k then spare = spare - 1 end
      end
      local is_over = owner.tag >= ends or got >= k and (spare == 0 or not others)
      if ran == 0 then is_over = owner.tag > start end -- it was not run: the turn goes on only if it had not begun
    until is_over or not ran or budget <= 0
    owner.cost = owner.cost + owner.tag - start
    if ran ~= 0 or owner.tag > start then
      local stays = ran and (not horizon or owner.tag <= horizon)
      if stays and not again then
        rise(heap, owner)
      elseif again then
        if not stays then heap[1] = heap[#heap] heap[#heap] = nil end
        if #heap > 1 then sift(heap) end
      end
    end
  end
  return got, clock, some
end

-- Whether an owner has more waiting, and what was taken of it is cut from his stream.
local function cut(owner)
  local first = peek(owner)
  if not first then
    redis.call('DEL', owner.stream)
  elseif owner.taken > 0 then
    redis.call('XTRIM', owner.stream, 'MINID', first[1])
  end
  return first ~= nil
end

-- Give each owner who was looked at his new place: in the line, or beside it.
local function put_back(lane, some, clock)
  local stay, go, aside = {}, {}, {}
  for _, owner in ipairs(some) do
    if owner.bounded then owners().take_room(owner) end
    local more = cut(owner)
    if owner.held_until and more then
      local first = tonumber(redis.call('ZRANGE', P .. 'held', 0, 0, 'WITHSCORES')[2])
      redis.call('ZADD', P .. 'held', owner.held_until, owner.name)
      redis.call('SADD', P .. 'held:' .. owner.name, lane .. ' ' .. queue)
      local soon = owner.held_until < NOW + owners().LOOK_AGAIN_MS -- a scheduler looks every few seconds by itself
      if soon and (not first or owner.held_until < first) then wake_scheduler() end
    end
    if owner.held_until or not more then
      append(go, owner.name)
      if owner.tag > clock then append(aside, string.format('%d', owner.tag), owner.name) end
    elseif owner.cost > 0 then
      append(stay, string.format('%d', owner.tag), owner.name)
    end
  end
  if #go > 0 then redis.call('ZREM', q .. lane .. ':users', unpack(go)) end
  if #aside > 0 then
    redis.call('ZREMRANGEBYSCORE', q .. lane .. ':aside', '-inf', clock)
    redis.call('ZADD', q .. lane .. ':aside', unpack(aside))
  end
  if #stay > 0 then redis.call('ZADD', q .. lane .. ':users', 'XX', unpack(stay)) end
  if #go > 0 and #stay == 0 then owners().forget_tags(q, lane) end
end

local function take_users(lane, k, clocks, working)
  local got, n = 0, math.min(k, 1000)
  if in_a_turn > 1 then n = math.min(n, 2 + math.ceil(k / in_a_turn)) end -- as many as are likely to be needed
  while got < k and budget > 0 do
    local line = first_owners(lane, k - got, n)
    if not line then break end
    local more, clock, some = serve(lane, line, k - got)
    got, n = got + more, math.min(k, 1000)
    clocks[lane] = math.max(clocks[lane], clock or 0)
    put_back(lane, some, clocks[lane])
    for _, other in ipairs(#working > 1 and working or {}) do -- what he was given here counts there: he has one part
      for _, owner in ipairs(other ~= lane and some or {}) do
        if owner.cost > 0 then owners().move_tag(q, other, owner.name, owner.cost) end
      end
    end
  end
  return got
end

-- Up to k jobs of one lane: those given back first.
local function take_lane(lane, k, clocks, working)
  local got = take_returned(lane, k)
  local more = take_users(lane, k - got, clocks, working)
  depth[lane] = depth[lane] - got - more - (gone[lane] or 0)
  gone[lane] = nil
  return got + more
end

-- How many of n each lane may give: smooth weighted round robin over the lanes that have work, with what is left
-- over kept for the next call, so that the weights hold however small the claims are.
local function portions(lanes, credit, n, contended)
  local out, total, weights = {}, 0, nil
  for _, lane in ipairs(lanes) do out[lane] = 0 end
  if #lanes == 1 then out[lanes[1]] = n return out end
  for i = 0, n - 1 do
    local now = lane_weights(contended + i)
    if now ~= weights then
      weights, total = now, 0
      for _, lane in ipairs(lanes) do total = total + weights[lane] end
    end
    local best
    for _, lane in ipairs(lanes) do
      credit[lane] = credit[lane] + weights[lane]
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

-- How many jobs wait in a lane that nobody can claim from now. What held owners have there is not known here.
local function left_in(lane)
  if redis.call('EXISTS', P .. 'held') == 1 then return depth[lane] end
  return helping and redis.call('LLEN', q .. lane .. ':returned') or 0
end

-- The lanes that have work. Counters that a loss of Redis' data put wrong come right as soon as a lane is empty.
local function lanes_with_work(meta, credit, writes)
  local lanes = {}
  local some = any_work()
  for i, lane in ipairs(LANES) do
    credit[lane], depth[lane] = tonumber(meta[i] or 0), tonumber(meta[i + 3] or 0)
    if some and has_work(lane) then
      append(lanes, lane)
    elseif credit[lane] ~= 0 or depth[lane] ~= 0 and left_in(lane) == 0 then
      credit[lane] = 0
      append(writes, 'credit:' .. lane, 0)
      append(writes, 'depth:' .. lane, left_in(lane))
    end
  end
  return lanes
end

local function claim()
  if want == 0 then return end
  local meta = redis.call('HMGET', q .. 'meta', 'credit:high', 'credit:normal', 'credit:low', 'depth:high',
    'depth:normal', 'depth:low', 'rate', 'claimed', 'clock:high', 'clock:normal', 'clock:low', 'pace:jobs', 'pace:units',
    'pace:gpu', 'contended', 'stretch')
  local credit, clocks, writes, got = {}, {}, {}, 0
  for i, lane in ipairs(LANES) do clocks[lane] = tonumber(meta[i + 8] or 0) end
  if meta[12] then PER_JOB = meta[14] / math.max(1, meta[12]) end
  local stretch = tonumber(meta[16] or 0) -- jobs started since the queue was empty
  if PER_JOB > 0 and PER_JOB <= LEAST_COST then
    in_a_turn = math.max(1, math.min(SHORT_IN_A_TURN, math.floor(stretch / STARTED_FOR_ONE)))
  end
  if tonumber(meta[13] or 0) > 0 then PER_UNIT = meta[14] / meta[13] end
  local lanes = lanes_with_work(meta, credit, writes)
  if #lanes == 0 and stretch > 0 then append(writes, 'stretch', 0) end
  if #lanes == 0 and #writes == 0 then return end
  even_when_full()
  local found, contended = lanes, tonumber(meta[15] or 0)
  if #lanes > 1 then spare = 0 end -- each gets its portion
  while got < want and budget > 0 and #lanes > 0 do
    local portion, more = portions(lanes, credit, want - got, contended + got), {}
    for _, lane in ipairs(lanes) do
      local n = portion[lane] > 0 and take_lane(lane, portion[lane], clocks, found) or 0
      got = got + n
      if n >= portion[lane] then
        append(more, lane)
      elseif budget > 0 then -- nothing is left in it
        credit[lane], depth[lane] = 0, left_in(lane)
      end
    end
    lanes = more
  end
  if #found > 1 then
    append(writes, 'contended', contended + got)
  elseif contended > 0 then
    append(writes, 'contended', 0)
  end
  for _, lane in ipairs(found) do
    append(writes, 'credit:' .. lane, credit[lane])
    append(writes, 'depth:' .. lane, depth[lane])
    if clocks[lane] > 0 then append(writes, 'clock:' .. lane, string.format('%d', clocks[lane])) end
  end
  if got > 0 then
    append(writes, 'stretch', got >= want and stretch + got or 0)
    append(writes, 'rate', rate_after(tonumber(meta[7] or 0), tonumber(meta[8] or NOW), got))
    append(writes, 'claimed', NOW_TEXT)
    redis.call('ZADD', q .. 'leases', unpack(leases))
    redis.call('SET', q .. 'claimed:' .. worker, request .. ' ' .. table.concat(held, ' '), 'PX', 600000)
  end
  redis.call('HSET', q .. 'meta', unpack(writes))
  if got >= want or budget <= 0 then ring(q) end -- the baton: perhaps there is more, for another worker
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
