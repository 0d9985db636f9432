-- submit: accept jobs: idempotency, the queue's bound, the record, the user's place, all or nothing per job.
-- KEYS[1] shard prefix
-- ARGV    idempotency_ms, max_depth, events_kept, ordinary ttl_ms, usage_ms (how long sums of usage are kept), retention_ms,
--         then 20 per job: id, queue, lane, user, due_ms (0: now),
--         ttl_ms, timeout_ms, max_attempts, work, metadata, retry_of, idempotency digest ('' none), fingerprint,
--         the model asked for ('': the queue's), keep_ms (0: a finished record goes after its retention; else this long
--         after now, whenever it finishes),
--         its webhook (JSON; '': none), the units it is thought to need (0: not known), its API key's id ('': none),
--         what it is thought to cost (millionths), its conversation ('': none; e, r or c and its key: enqueue | reject |
--         cancel_previous)
-- returns per job: {'new', id, its first step, jobs that waited before it, of them its user's in its lane (-1: not looked)} | {'same' | 'mismatch', id} |
--         {'full', seconds until there is room} | {'busy', unfinished job of its conversation} |
--         {'limited', ms until its key's limits let it through (-1: never), the
--         limits in the way, what it needs and the most that there can be of the first}; then, with the first job of a
--         key that has limits, how those stand now
-- atomic because a job must never be visible without its record, nor accepted twice for one key; the id is made
--         by the caller, so that sending the same call again after a lost reply changes nothing. What a key may use is
--         taken at the moment at which its job is accepted: a job that was accepted before, or is refused, takes nothing.
-- include job.lua
local function main()
local IDEMPOTENCY_MS, MAX_DEPTH, EVENTS_KEPT, ORDINARY_TTL_MS = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local USAGE_MS, RETENTION_MS, MOST_TURNS = ARGV[5], ARGV[6], 1000
local HELD = {tokens = true, audio_seconds = true, cost = true} -- what a job may give back when it ends
local depths, answers, expiry = {}, {}, {}

local function depth_of(queue)
  if not depths[queue] then
    local meta = redis.call('HMGET', at(queue) .. 'meta', 'depth:high', 'depth:normal', 'depth:low', 'rate', 'claimed',
      'room')
    if not (meta[1] or meta[2] or meta[3]) then redis.call('SADD', P .. 'queues', queue) end
    -- Scheduled jobs of all the shard's queues count: they take the same memory, and will want the same place.
    local waiting = (meta[1] or 0) + (meta[2] or 0) + (meta[3] or 0) + redis.call('ZCARD', P .. 'due')
    -- Where nothing was claimed for a while, the pace is not what it was.
    local rate = (meta[4] or 0) * math.exp(math.min(0, (meta[5] or 0) - NOW) / 30000)
    depths[queue] = {n = waiting, rate = rate, room = tonumber(meta[6] or 0), q = at(queue)}
  end
  return depths[queue]
end

-- Seconds until one more job was taken at the pace of the last half minute.
local function start_in(depth)
  return depth.rate < 1 / 60 and 60 or math.max(1, math.ceil(1 / depth.rate))
end

-- Seconds until there is a place for one who is refused now. Each who is refused is told of another place, so
-- that not all come back for the same one.
local function room_in(depth)
  if depth.rate < 1 / 60 then return 60 end
  depth.room = math.min(NOW + 60000, math.max(NOW, depth.room) + 1000 / depth.rate)
  redis.call('HSET', depth.q .. 'meta', 'room', string.format('%d', depth.room))
  return math.max(1, math.ceil((depth.room - NOW) / 1000))
end

-- The time to live that most jobs have; `expire` finds those by the index. The first submit of all says which it is.
local ttl
local function ordinary_ttl()
  if not ttl then
    local known = redis.call('HMGET', P .. 'ordinary', 'ttl_ms', 'usage_ms')
    ttl = known[1]
    if not ttl then
      redis.call('HSET', P .. 'ordinary', 'ttl_ms', ORDINARY_TTL_MS)
      ttl = ORDINARY_TTL_MS
    end
    if known[2] ~= USAGE_MS then redis.call('HSET', P .. 'ordinary', 'usage_ms', USAGE_MS) end
  end
  return ttl
end

local function earlier(id, digest, fingerprint)
  if redis.call('EXISTS', P .. 'job:' .. id) == 1 then return {'same', id} end
  local kept = digest ~= '' and redis.call('GET', P .. 'idem:' .. digest)
  if not kept then return nil end
  local job, known = string.match(kept, '^(%S+) (.*)$')
  if redis.call('EXISTS', P .. 'job:' .. job) == 0 then return nil end -- its retention has ended
  if known ~= fingerprint then return {'mismatch', job} end
  return {'same', job}
end

-- What a job needs of its key's limits, and that as it stands in its record. Jobs of one call are often alike, and
-- nothing drains between them.
local last = {}
local function needs_of(i, subject)
  local queue, units, micros = ARGV[i + 1], ARGV[i + 16], ARGV[i + 18]
  if last.queue ~= queue or last.units ~= units or last.micros ~= micros or last.subject ~= subject then
    local needs = {requests = 1, cost = micros / 1000000}
    needs[string.sub(queue, 1, 14) == 'transcription:' and 'audio_seconds' or 'tokens'] = tonumber(units)
    last = {queue = queue, units = units, micros = micros, subject = subject, needs = needs}
  end
  return last.needs
end

-- How many jobs of a key wait. At the bound it looks whether some of them do so no more: of a record that is gone
-- (Redis lost data), or that a person removed, nobody will tell.
local counted = {}
local function waiting_of(api_key, most)
  local key = P .. 'waits:' .. api_key
  local n = counted[api_key] or redis.call('SCARD', key)
  if n >= most then
    for _, id in ipairs(redis.call('SRANDMEMBER', key, 20)) do
      local history = redis.call('HGET', P .. 'job:' .. id, 'history')
      if not history or not string.find('sq', code_of(history), 1, true) then n = n - redis.call('SREM', key, id) end
    end
  end
  counted[api_key] = n
  return n
end

local function refuse(q, wait, names, need, most)
  for _, name in ipairs(names) do count(q, 'limited:' .. name, 1) end
  return {'limited', wait, table.concat(names, ' '), need, most}
end

-- Hold a job against its key's limits, and take what it needs. Returns why it is refused, if it is.
local function stopped_at(door, i, queue, api_key)
  if door.waiting and waiting_of(api_key, door.waiting) >= door.waiting then
    return refuse(at(queue), start_in(depth_of(queue)) * 1000, {'waiting'}, '1', string.format('%d', door.waiting))
  end
  if not door.limits then return end
  local subject = 'k:' .. api_key
  local needs = needs_of(i, subject)
  local wait, violated = limits().take_from(subject, door.limits, needs, HELD)
  if not wait then
    last.held = last.held or limits().held_of(subject, needs, HELD)
    return nil, last.held
  end
  local names = {}
  for _, n in ipairs(violated) do
    append(names, string.format('%s-%ds', door.limits[n][1], door.limits[n][3] / 1000))
  end
  local first = door.limits[violated[1]]
  return refuse(at(queue), wait, names, string.format('%.14g', needs[first[1]]), string.format('%.14g', first[4]))
end

-- Whether a job's conversation lets it in: nothing, or why not.
local function has_no_room(user, conversation)
  local key = conversations().conversation_of(user, string.sub(conversation, 2))
  local first, mode = conversations().has_turn(key), string.sub(conversation, 1, 1)
  if first and mode == 'r' then return {'busy', id_of(first)} end
  if mode == 'e' and redis.call('LLEN', key) >= MOST_TURNS then return {'full', 60} end
end

-- Take a place in a conversation; true if the job has to wait for its turn.
local function join(id, user, conversation)
  local key = conversations().conversation_of(user, string.sub(conversation, 2))
  if string.sub(conversation, 1, 1) == 'c' then
    local unfinished = redis.call('LRANGE', key, 0, -1)
    redis.call('DEL', key)
    for _, short in ipairs(unfinished) do
      end_job(id_of(short), 'x', 'cancelled', 'a later job of its conversation took its place', RETENTION_MS)
    end
  end
  return redis.call('RPUSH', key, short_of(id)) > 1
end

local function accept(i)
  local id, queue, lane, user, due = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], tonumber(ARGV[i + 4])
  local digest, fingerprint = ARGV[i + 11], ARGV[i + 12]
  local known = earlier(id, digest, fingerprint)
  if known then return known end
  local depth = depth_of(queue)
  if depth.n >= MAX_DEPTH then return {'full', room_in(depth)} end
  local conversation = ARGV[i + 19]
  local no_room = conversation ~= '' and has_no_room(user, conversation)
  if no_room then return no_room end
  local api_key, held = ARGV[i + 17], nil
  local door = door_of(api_key)
  if door then
    local why
    why, held = stopped_at(door, i, queue, api_key)
    if why then return why end
    if door.waiting then
      counted[api_key] = counted[api_key] + 1
      wait_on(id, api_key)
    end
  end
  depth.n = depth.n + 1

  local waits = conversation ~= '' and join(id, user, conversation)
  if conversation ~= '' then last = {} end -- it may have ended a job, which gives back of the limits
  local q, code = at(queue), (due > NOW or waits) and 's' or 'q'
  local step = move(id, q, '', code, '1')
  events[#events], events[#events - 1] = nil, nil -- nobody can follow a job whose id nobody has yet
  local record = {}
  if waits then
    redis.call('ZADD', P .. 'due', NOW + conversations().TURN_LOOK_MS, id)
  elseif code == 's' then
    append(record, 'due', due)
    schedule(id, due)
  else
    enqueue(q, id, lane, user)
    ready(q, lane, user)
  end
  local expires = string.format('%d', NOW + ARGV[i + 5])
  append(record, 'ticket', to_ticket({expires = expires, attempts = 0, deaths = 0, timeout = ARGV[i + 6],
    tries = ARGV[i + 7], lane = lane, units = tonumber(ARGV[i + 16]), api_key = api_key, queue = queue, user = user}))
  local hook = ARGV[i + 15]
  append(record, 'history', hook == '' and step or 'w ' .. step)
  if hook ~= '' then append(record, 'hook', hook) end
  append(record, 'work', ARGV[i + 8])
  if ARGV[i + 9] ~= '' then append(record, 'metadata', ARGV[i + 9]) end
  if ARGV[i + 10] ~= '' then append(record, 'retry_of', ARGV[i + 10]) end
  if ARGV[i + 13] ~= '' then append(record, 'model', ARGV[i + 13]) end
  if held and held ~= '' then append(record, 'held', held) end
  if conversation ~= '' then append(record, 'conversation', string.sub(conversation, 2)) end
  redis.call('HSET', P .. 'job:' .. id, unpack(record))
  if ARGV[i + 14] ~= '0' then redis.call('PEXPIRE', P .. 'job:' .. id, ARGV[i + 14]) end
  local place = redis.call('XADD', P .. 'index', '*', 'j', short_of(id), 'u', user)
  -- Who has a key lists what is his: at the same place in a list of his own, which is no part of what must not fail.
  if api_key ~= '' then redis.pcall('XADD', P .. 'index:of:' .. user, place, 'j', short_of(id), 'u', user) end
  if digest ~= '' then redis.call('SET', P .. 'idem:' .. digest, id .. ' ' .. fingerprint, 'PX', IDEMPOTENCY_MS) end
  if ARGV[i + 5] ~= ordinary_ttl() then append(expiry, expires, id) end
  -- Where few wait, those who come together want to know their places; where many do, each look counts.
  local own = code == 'q' and depth.n > 1 and depth.n <= 1000 and redis.call('XLEN', stream_of(q, lane, user)) - 1
  return {'new', id, step, depth.n - 1, own or -1}
end

for i = 7, #ARGV, 20 do append(answers, accept(i)) end
local told = {} -- all jobs of a key in one call hear the same, which is the latest: the first of them has it
for i, answer in ipairs(answers) do
  local api_key = ARGV[20 * i + 4]
  local door = door_of(api_key)
  if door and door.limits and not told[api_key] then
    told[api_key] = true
    append(answer, limits().standing_of('k:' .. api_key, door.limits))
  end
end
if #expiry > 0 then redis.call('ZADD', P .. 'expiry', unpack(expiry)) end
finish(EVENTS_KEPT)
return answers
end
return main()
