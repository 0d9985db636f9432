-- job.lua: what the scripts share. Included at the top of each; not run by itself.
-- KEYS[1] is always the shard's prefix; key names are those of common/keys.py.
-- Time is Redis' own, in milliseconds: no client's clock decides anything.
-- All of this runs anew with every call, so what few calls need stands inside the function that needs it. A script of
-- many functions has them in a `main`: each function that Lua makes looks up what it takes from outside, one by one, and
-- inside another one that has been done (claim: 15 us a call before it does anything, instead of 27).
--
-- A record's `history` is every state that the job has had: steps `<number><code><milliseconds>` with spaces between.
-- Its last step says the state. One that begins with `w` is of a job that brought a webhook.
-- A lease is `<id>:<step>`, the step that began the delivery: it holds for as long as
-- that is the last one, so that the fence is one comparison, and two deliveries never have the same.
-- A record's `ticket` is what the queue must know of a job, in one field because each field read costs as much as
-- the rest of the look: `<expires> <attempts> <deaths> <timeout> <tries> <lane> <queue> <user>`. The lane is its first
-- letter, then what the job is thought to need (tokens or seconds of audio; nothing: not known), then `,` and the API key.
-- Entries of streams hold an id without its first six characters, which are the same for a whole shard.
local P = KEYS[1]
local clock = redis.call('TIME')
local NOW = clock[1] * 1000 + math.floor(clock[2] / 1000)
local NOW_TEXT = string.format('%d', NOW)
local STATES = {s = 'scheduled', q = 'queued', p = 'in_progress', c = 'completed', i = 'incomplete', f = 'failed',
  x = 'cancelled', e = 'expired'}
local TERMINAL = 'cifxe'
local LANES = {'high', 'normal', 'low'}

local events, tally, readied = {}, {}, {}

-- At its memory limit Redis refuses a script's first write if that could need memory, and none after it. Whatever
-- moves jobs on calls this first (submit does not): it is what makes room again.
local ready_when_full = false
local function even_when_full()
  if not ready_when_full then redis.call('SREM', P .. 'queues', '') end
  ready_when_full = true
end

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
  fields[field] = (fields[field] or 0) + by
end

-- Write sums: one look and one write for all fields of a hash. Returns whether any is new.
local function add_up(key, sums)
  local fields, fresh = {}, false
  for field in pairs(sums) do append(fields, field) end
  for first = 1, #fields, 1000 do -- Lua cannot unpack more than about 8,000 values
    local last = math.min(first + 999, #fields)
    local was, out = redis.call('HMGET', key, unpack(fields, first, last)), {}
    for i = first, last do
      local before = was[i - first + 1]
      fresh = fresh or not before
      append(out, fields[i], string.format('%d', (before or 0) + sums[fields[i]]))
    end
    redis.call('HSET', key, unpack(out))
  end
  return fresh
end

-- The first bucket that a duration fits into; the one after the last for those that fit into none.
local BUCKETS = {5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 1800000}
local function bucket_of(ms)
  local bucket = 1
  while bucket <= #BUCKETS and ms > BUCKETS[bucket] do bucket = bucket + 1 end
  return bucket
end

-- `name` is wait or run. Jobs of one call have often waited or run about equally long: such are counted together.
local observed = {}
local function count_observed(name)
  local seen = observed[name]
  count(seen.q, name .. ':' .. seen.bucket, seen.n)
  count(seen.q, name .. ':sum', seen.sum)
end

local function observe(q, name, ms)
  local seen = observed[name]
  if seen and ms > seen.over and ms <= seen.most and seen.q == q then
    seen.n, seen.sum = seen.n + 1, seen.sum + ms
  else
    if seen then count_observed(name) end
    local bucket = bucket_of(ms)
    observed[name] = {q = q, bucket = bucket, over = BUCKETS[bucket - 1] or -math.huge, most = BUCKETS[bucket] or math.huge,
      n = 1, sum = ms}
  end
end

-- A history's last step: its code, its number, its time. Times have thirteen digits until the year 2286.
local function code_of(history) return string.sub(history, -14, -14) end
local function since_of(history) return tonumber(string.sub(history, -13)) end
local function number_of(history)
  local tail = string.sub(history, -24, -15)
  return tonumber(string.match(tail, ' (%d+)$') or tail)
end

local function is_last(history, step)
  local n = #step
  return string.sub(history, -n) == step and (#history == n or string.byte(history, -n - 1) == 32)
end

local function of_lease(held) return string.sub(held, 1, 28), string.sub(held, 30) end -- an id has 28 characters

local LANE_OF = {h = 'high', n = 'normal', l = 'low'}
local function of_ticket(ticket)
  local expires, attempts, deaths, timeout, tries, lane, units, api_key, queue, user =
    string.match(ticket, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%l)(%d*),?(%w*) (%S+) (.*)$')
  return {expires = expires, attempts = attempts, deaths = deaths, timeout = timeout, tries = tries,
    lane = LANE_OF[lane], units = tonumber(units) or 0, api_key = api_key, queue = queue, user = user}
end

-- What does not change while a job lives, of jobs that are met many times in a call and mostly alike: read once for all
-- of them, and not to be changed. `who` and `run` are for usage.lua and committing.lua.
local tickets = {}
local function look_at_ticket(ticket)
  local alike = string.sub(ticket, 15)
  local found = tickets[alike]
  if not found then
    local lane, units, api_key, queue, user = string.match(alike, '^%d+ %d+ %d+ %d+ (%l)(%d*),?(%w*) (%S+) (.*)$')
    found = {lane = LANE_OF[lane], units = tonumber(units) or 0, api_key = api_key, queue = queue, user = user, who = false,
      run = false}
    tickets[alike] = found
  end
  return found
end

local function to_ticket(t)
  local lane = string.sub(t.lane, 1, 1)
  if t.units > 0 then lane = lane .. string.format('%d', t.units) end
  if t.api_key ~= '' then lane = lane .. ',' .. t.api_key end
  return table.concat({t.expires, t.attempts, t.deaths, t.timeout, t.tries, lane, t.queue, t.user}, ' ')
end

local counters = {} -- names by code
-- The one place where a state changes: gives the job's new history and the step, counts the move, notes the event.
-- `number` may be nil: the next one after the last in the history. A text is cheaper than a number here.
local function move(id, q, history, code, number)
  local step = (number or number_of(history) + 1) .. code .. NOW_TEXT
  local n = #events
  events[n + 1], events[n + 2] = id, step
  if not counters[code] then counters[code] = 'state:' .. STATES[code] end
  count(q, counters[code], 1)
  if history == '' then return step, step end
  return history .. ' ' .. step, step
end

-- The next number for a job whose worker may have written token events that the history does not know.
local function next_number(id, history)
  local number = number_of(history)
  local last = redis.call('XREVRANGE', P .. 'tokens:' .. id, '+', '-', 'COUNT', 1)[1]
  if last then number = math.max(number, tonumber(string.match(last[1], '^%d+'))) end
  return number + 1
end

local function short_of(id) return string.sub(id, 7) end
local function id_of(short) return 'job_' .. string.match(P, '{(%x+)}') .. short end

-- Put a job at the end of its user's stream.
local function enqueue(q, id, lane, user)
  redis.call('XADD', stream_of(q, lane, user), '*', 'j', short_of(id))
end

-- A waiting job's entry. It is no older than the step that says since when the job waits, and seldom younger.
local function entry_of(stream, id, history)
  local short, start = short_of(id), string.sub(history, -13)
  while true do
    local entries = redis.call('XRANGE', stream, start, '+', 'COUNT', 200)
    for _, entry in ipairs(entries) do
      if entry[2][2] == short then return entry[1] end
    end
    if #entries < 200 then return nil end
    start = '(' .. entries[200][1]
  end
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

-- include owners.lua

-- Take a waiting job out of its line. A user without waiting work leaves nothing behind.
local function leave_line(q, id, lane, user, history)
  redis.call('HINCRBY', q .. 'meta', 'depth:' .. lane, -1)
  if redis.call('LREM', q .. lane .. ':returned', 1, id) == 1 then return end
  local stream = stream_of(q, lane, user)
  local entry = entry_of(stream, id, history)
  if entry then redis.call('XDEL', stream, entry) end
  if redis.call('XLEN', stream) == 0 then
    redis.call('DEL', stream)
    owners().step_aside(q, lane, user)
  end
end

-- Put a delivery into the outbox and wake who delivers. `fields` is what its record has beside what all have.
local function post(name, event, kind, fields)
  redis.call('HSET', P .. 'delivery:' .. name, 'event', event, 'type', kind, 'at', NOW_TEXT, 'status', 'pending',
    'tries', 0, unpack(fields))
  redis.call('ZADD', P .. 'outbox', NOW_TEXT, name)
  redis.call('ZADD', P .. 'deliveries', NOW_TEXT, name)
  if redis.call('EXISTS', P .. 'outbox:bell') == 0 then redis.call('RPUSH', P .. 'outbox:bell', '1') end
end

-- Tell of an event: a delivery to each endpoint of its user that wants it, and one to the webhook that came with what
-- ended (`known`: JSON, or false). `name` is the event's id without `evt_`.
local function announce(name, kind, user, known, fields)
  local event, wants = 'evt_' .. name, redis.call('HGETALL', P .. 'hooks:' .. user)
  append(fields, 'user', user)
  for i = 1, #wants, 2 do
    if string.find(wants[i + 1] .. ' ', ' ' .. kind .. ' ', 1, true) then
      post(name .. '-' .. string.sub(wants[i], 4), event, kind, {'endpoint', wants[i], unpack(fields)})
    end
  end
  local hook = known and cjson.decode(known)
  if not hook or not hook.url then return end
  for _, wanted in ipairs(hook.events or {kind}) do
    if wanted == kind then
      append(fields, 'hook', known)
      return post(name, event, kind, fields)
    end
  end
end

-- Tell of a job's end. Every terminal move calls this.
local owned -- whether anybody has endpoints: asked once a call, so that a job without a webhook costs nothing
local function tell(id, code, history)
  if owned == nil then owned = redis.call('EXISTS', P .. 'owners') == 1 end
  local brought = string.byte(history) == 119 -- w
  if not brought and not owned then return end
  local found = redis.call('HMGET', P .. 'job:' .. id, 'ticket', 'hook')
  local hook, state = brought and cjson.decode(found[2]) or {}, STATES[code]
  if hook.subject and code == 'e' then state = 'failed' end -- OpenAI's responses do not expire
  local short = string.sub(id, 5)
  announce(short, (hook.subject or 'job') .. '.' .. state, of_ticket(found[1]).user, found[2],
    {'job', id, 'subject', hook.subject and 'resp_' .. short or id})
end

-- include conversation.lua
-- include limits.lua
-- include usage.lua
-- What every terminal move does beside writing the state.
local function close(id, retention_ms)
  redis.call('PEXPIRE', P .. 'job:' .. id, retention_ms, 'NX') -- one that must be kept longer has its end already
  redis.call('PEXPIRE', P .. 'tokens:' .. id, retention_ms)
  redis.call('ZREM', P .. 'expiry', id)
end

-- Take a job out of wherever it stands and end it. Returns its state before, or false when there is no such job.
-- With `by_now` only if its time to live has ended; `read`: its entry was taken from the stream already.
local function end_job(id, code, reason, message, retention_ms, by_now, read)
  local key = P .. 'job:' .. id
  local job = redis.call('HMGET', key, 'ticket', 'history', 'worker', 'charged', 'model', 'held',
    'conversation')
  if not job[1] then return false end
  local ticket, history = of_ticket(job[1]), job[2]
  local before = code_of(history)
  if string.find(TERMINAL, before, 1, true) or by_now and tonumber(ticket.expires) > NOW then return STATES[before] end
  local q = at(ticket.queue)
  if before == 's' then
    redis.call('ZREM', P .. 'due', id)
  elseif before == 'q' then
    if not read then leave_line(q, id, ticket.lane, ticket.user, history) end
    if string.find(history, 'p%d+ %d+q%d+$') then -- it was given back
      owners().put_right(q, {owner = ticket.user, units = ticket.units, charged = job[4], cost = 0, used = 0, n = 1})
    end
  else
    local held = id .. ':' .. string.match(history, '(%S+)$')
    redis.call('ZREM', q .. 'leases', held)
    redis.call('RPUSH', q .. 'control:' .. job[3], held)
    redis.call('PEXPIRE', q .. 'control:' .. job[3], 60000)
    -- It has used no more than since it began; of units nobody knows.
    local cost = math.min(job[4] and owners().charge_of(job[4]).cost or LEAST_COST, NOW - since_of(history))
    owners().put_right(q, {owner = ticket.user, units = ticket.units, charged = job[4], cost = cost, n = 1})
  end
  redis.call('HSET', key, 'history', (move(id, q, history, code, next_number(id, history))),
    'error', cjson.encode({code = reason, message = message}))
  if before ~= 'p' then wait_no_more(id, ticket.api_key) end
  account(id, code, history, '', ticket, job[5], job[6])
  tell(id, code, history)
  close(id, retention_ms)
  if job[7] then conversations().pass_turn(id, ticket.user, job[7]) end
  return STATES[before]
end

-- Give a job in progress back to the front of its lane: it was paid for and goes before new ones.
local function give_back(id, q, lane, history, number)
  redis.call('RPUSH', q .. lane .. ':returned', id)
  ready(q, lane)
  redis.call('HSET', P .. 'job:' .. id, 'history', (move(id, q, history, 'q', number)))
end

-- Keep something that must not be run, with the reason, where a person can find it.
local function park(id, queue, reason)
  redis.call('ZADD', P .. 'parked', NOW_TEXT, id)
  redis.call('HSET', P .. 'parked:info', id, cjson.encode({queue = queue, reason = reason}))
  local excess = redis.call('ZCARD', P .. 'parked') - 10000
  if excess > 0 then
    local oldest = redis.call('ZRANGE', P .. 'parked', 0, excess - 1)
    redis.call('ZREM', P .. 'parked', unpack(oldest))
    redis.call('HDEL', P .. 'parked:info', unpack(oldest))
  end
end

local function wake_scheduler()
  redis.call('RPUSH', P .. 'scheduler:bell', '1')
  redis.call('LTRIM', P .. 'scheduler:bell', 0, 0)
end

-- A scheduler sleeps until the earliest due job: wake it when this one is earlier.
local function schedule(id, due)
  local first = redis.call('ZRANGE', P .. 'due', 0, 0, 'WITHSCORES')[2]
  redis.call('ZADD', P .. 'due', due, id)
  if not first or due < tonumber(first) then wake_scheduler() end
end

-- Write what was gathered: places of users, bells, counters, and the state events.
local function finish(events_kept)
  if made then made.settle() end
  for q, lanes in pairs(readied) do
    for lane, got in pairs(lanes) do
      redis.call('HINCRBY', q .. 'meta', 'depth:' .. lane, got.n)
      if next(got.users) then
        owners().line_up(q, lane, got.users)
      end
    end
    ring(q)
  end
  if made then made.keep() end
  if limits_made then limits_made.keep_buckets() end
  keep_usage()
  for name in pairs(observed) do count_observed(name) end
  for q, fields in pairs(tally) do add_up(q .. 'counts', fields) end
  for first = 1, #events, 2000 do -- Lua cannot unpack more than about 8,000 values
    local last = math.min(first + 1999, #events)
    redis.call('XADD', P .. 'events', 'MAXLEN', '~', events_kept, '*', unpack(events, first, last))
  end
end
