-- job.lua: what the scripts share. Included at the top of each; not run by itself.
-- KEYS[1] is always the shard's prefix; key names are those of common/keys.py.
-- Time is Redis' own, in milliseconds: no client's clock decides anything.
local P = KEYS[1]
local clock = redis.call('TIME')
local NOW = clock[1] * 1000 + math.floor(clock[2] / 1000)
local NOW_TEXT = string.format('%d', NOW)
local CODES = {scheduled = 's', queued = 'q', in_progress = 'p', completed = 'c', incomplete = 'i', failed = 'f',
  cancelled = 'x', expired = 'e'}
local TERMINAL = {completed = true, incomplete = true, failed = true, cancelled = true, expired = true}
local LANES = {'high', 'normal', 'low'}
local BUCKETS = {5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 1800000}

local events, tally, readied = {}, {}, {}

-- At its memory limit Redis refuses a script's first write if that could need memory, and none after it. Whatever
-- moves jobs on calls this first (submit does not): it is what makes room again.
local function even_when_full() redis.call('SREM', P .. 'queues', '') end

local function at(queue) return P .. 'q:' .. queue .. ':' end

local function stream_of(q, lane, user) return q .. lane .. ':u:' .. user end

-- Called several times a job: an argument list with `...` would cost a table each time.
local function append(list, a, b)
  local n = #list
  list[n + 1] = a
  if b ~= nil then list[n + 2] = b end
end

-- Counters are summed here and written once per call.
local function count(q, field, by)
  local fields = tally[q]
  if not fields then
    fields = {}
    tally[q] = fields
  end
  fields[field] = (fields[field] or 0) + (by or 1)
end

local function observe(q, name, ms)
  local bucket = 1
  while bucket <= #BUCKETS and ms > BUCKETS[bucket] do bucket = bucket + 1 end
  count(q, name .. ':' .. bucket)
  count(q, name .. ':sum', ms)
end

-- Number and time of the last step of a history. Only its end is searched: Lua tries a pattern at every place.
local function last_step(history)
  local seq, since = string.match(string.sub(history, -24), '(%d+)%a(%d+)$')
  return tonumber(seq) or 0, tonumber(since)
end

-- The one place where a state changes: gives the job's new history, counts the move, notes the event.
-- `seq` may be nil: the next number after the last one in the history.
local function move(id, q, history, state, seq)
  if not seq then seq = last_step(history) + 1 end
  local step = seq .. CODES[state] .. NOW_TEXT
  append(events, id, step)
  count(q, 'state:' .. state)
  if history == '' then return step end
  return history .. ' ' .. step
end

-- The next number for a job whose worker may have written token events that the history does not know.
local function next_seq(id, history)
  local seq = last_step(history)
  local last = redis.call('XREVRANGE', P .. 'tokens:' .. id, '+', '-', 'COUNT', 1)[1]
  if last then seq = math.max(seq, tonumber(string.match(last[1], '^%d+'))) end
  return seq + 1
end

-- Put a job at the end of its user's stream; returns the entry's id.
local function enqueue(q, id, lane, user)
  local stream = stream_of(q, lane, user)
  local entry = redis.call('XADD', stream, 'NOMKSTREAM', '*', 'j', id)
  if not entry then
    redis.call('XGROUP', 'CREATE', stream, 'workers', '0', 'MKSTREAM')
    entry = redis.call('XADD', stream, '*', 'j', id)
  end
  return entry
end

-- Note that a job of this user became ready; `finish` gives the user a place and rings the bell.
local function ready(q, lane, user)
  readied[q] = readied[q] or {}
  readied[q][lane] = readied[q][lane] or {n = 0, users = {}}
  readied[q][lane].n = readied[q][lane].n + 1
  if user then readied[q][lane].users[user] = true end
end

local function ring(q)
  if redis.call('EXISTS', q .. 'bell') == 0 then redis.call('RPUSH', q .. 'bell', '1') end
end

-- A user without work leaves nothing behind.
local function drop_if_empty(q, lane, user)
  local stream = stream_of(q, lane, user)
  if redis.call('XLEN', stream) == 0 then
    redis.call('DEL', stream)
    redis.call('ZREM', q .. lane .. ':users', user)
  end
end

local function remove_entry(q, lane, user, entry)
  local stream = stream_of(q, lane, user)
  redis.pcall('XACK', stream, 'workers', entry) -- pcall: the stream or its group may be lost
  redis.call('XDEL', stream, entry)
  drop_if_empty(q, lane, user)
end

-- What every terminal move does beside writing the state.
local function close(id, retention_ms)
  redis.call('PEXPIRE', P .. 'job:' .. id, retention_ms)
  redis.call('PEXPIRE', P .. 'tokens:' .. id, retention_ms)
  redis.call('ZREM', P .. 'expiry', id)
end

-- Take a job out of wherever it stands and end it. Returns its state before, or false when there is no such job.
local function end_job(id, state, code, message, retention_ms)
  local key = P .. 'job:' .. id
  local job = redis.call('HMGET', key, 'state', 'queue', 'lane', 'user', 'entry', 'claims', 'worker', 'history')
  local before, queue, lane, user, entry = job[1], job[2], job[3], job[4], job[5]
  if not before or TERMINAL[before] then return before end
  local q = at(queue)
  if before == 'scheduled' then
    redis.call('ZREM', P .. 'due', id)
  else
    remove_entry(q, lane, user, entry)
    if before == 'queued' then
      redis.call('LREM', q .. lane .. ':returned', 1, id)
      redis.call('HINCRBY', q .. 'meta', 'depth:' .. lane, -1)
    else
      local held = id .. ':' .. job[6]
      redis.call('ZREM', q .. 'leases', held)
      redis.call('RPUSH', q .. 'control:' .. job[7], held)
      redis.call('PEXPIRE', q .. 'control:' .. job[7], 60000)
    end
  end
  local history = move(id, q, job[8], state, next_seq(id, job[8]))
  redis.call('HSET', key, 'state', state, 'history', history)
  if code then redis.call('HSET', key, 'error', cjson.encode({code = code, message = message})) end
  close(id, retention_ms)
  return before
end

-- Give a job in progress back to the front of its lane: it was paid for and goes before new ones.
local function give_back(id, q, lane, user, entry, claims, history, seq)
  local key, stream = P .. 'job:' .. id, stream_of(q, lane, user)
  redis.call('ZREM', q .. 'leases', id .. ':' .. claims)
  local kept = redis.pcall('XCLAIM', stream, 'workers', 'returned', 0, entry, 'JUSTID')
  if kept.err or #kept == 0 then -- the entry or the group is lost: a new entry at the end
    redis.call('HSET', key, 'entry', enqueue(q, id, lane, user))
    ready(q, lane, user)
  else
    redis.call('RPUSH', q .. lane .. ':returned', id)
    ready(q, lane)
  end
  redis.call('HSET', key, 'state', 'queued', 'history', move(id, q, history, 'queued', seq))
end

-- Keep something that must not be run, with the reason, where a person can find it.
local function park(id, queue, reason)
  redis.call('ZADD', P .. 'parked', NOW, id)
  redis.call('HSET', P .. 'parked:info', id, cjson.encode({queue = queue, reason = reason}))
  local excess = redis.call('ZCARD', P .. 'parked') - 10000
  if excess > 0 then
    local oldest = redis.call('ZRANGE', P .. 'parked', 0, excess - 1)
    redis.call('ZREM', P .. 'parked', unpack(oldest))
    redis.call('HDEL', P .. 'parked:info', unpack(oldest))
  end
end

-- A scheduler sleeps until the earliest due job: wake it when this one is earlier.
local function schedule(id, due)
  local first = redis.call('ZRANGE', P .. 'due', 0, 0, 'WITHSCORES')[2]
  redis.call('ZADD', P .. 'due', due, id)
  if not first or due < tonumber(first) then
    redis.call('RPUSH', P .. 'scheduler:bell', '1')
    redis.call('LTRIM', P .. 'scheduler:bell', 0, 0)
  end
end

-- Write what was gathered: places of users, bells, counters, and the state events.
local function finish(events_kept)
  for q, lanes in pairs(readied) do
    for lane, got in pairs(lanes) do
      redis.call('HINCRBY', q .. 'meta', 'depth:' .. lane, got.n)
      if next(got.users) then
        local start = redis.call('HGET', q .. 'meta', 'clock:' .. lane) or '0'
        local places = {}
        for user in pairs(got.users) do append(places, start, user) end
        redis.call('ZADD', q .. lane .. ':users', 'NX', unpack(places))
      end
    end
    ring(q)
  end
  for q, fields in pairs(tally) do
    for field, by in pairs(fields) do redis.call('HINCRBY', q .. 'counts', field, by) end
  end
  for first = 1, #events, 2000 do -- Lua cannot unpack more than about 8,000 values
    local last = math.min(first + 1999, #events)
    redis.call('XADD', P .. 'events', 'MAXLEN', '~', events_kept, '*', unpack(events, first, last))
  end
end
