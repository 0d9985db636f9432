-- commit: store how a batch of runs ended: fence, result or error, state event, and the entry and lease removed.
-- KEYS[1] shard prefix
-- ARGV    queue, worker, retention_ms, events_kept, then 10 per job: id, claims, entry, lane, user,
--         outcome (completed | incomplete | failed | retry | release), sequence number of its last event,
--         body (result or error, JSON), usage (JSON), delay_ms (of a retry)
-- returns per job: 'stored', 'mine' (this very commit was stored before) or 'lost' (the lease is another's now)
-- atomic because a worker that lost its lease must change nothing, and a result, its event and the end of the
--         job's place in the queue must appear together.
-- include job.lua
even_when_full()
local queue, worker, RETENTION_MS, EVENTS_KEPT = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local q = at(queue)
local answers, entries, places, leases, closed = {}, {}, {}, {}, {}

local function leave(id, claims, entry, lane, user)
  local stream = stream_of(q, lane, user)
  if not entries[stream] then
    entries[stream] = {}
    places[stream] = {lane, user}
  end
  append(entries[stream], entry)
  append(leases, id .. ':' .. claims)
end

local function stop(id, state, job, seq, field, body, usage, claims)
  local record = {'state', state, 'history', move(id, q, job[3], state, seq), 'by', claims, field, body}
  if usage ~= '' then append(record, 'usage', usage) end
  if state == 'failed' then append(record, 'attempts', (job[4] or 0) + 1) end
  redis.call('HSET', P .. 'job:' .. id, unpack(record))
  redis.call('PEXPIRE', P .. 'job:' .. id, RETENTION_MS)
  local last, since = last_step(job[3])
  if claims ~= '1' or seq > last + 1 then -- it has token events
    redis.call('PEXPIRE', P .. 'tokens:' .. id, RETENTION_MS)
  end
  append(closed, id)
  observe(q, 'run', NOW - since)
end

-- A handled failure: another attempt after a pause, or the end.
local function retry(id, job, seq, body, delay_ms, claims)
  local attempts = (job[4] or 0) + 1
  if attempts >= tonumber(job[5]) then return stop(id, 'failed', job, seq, 'error', body, '', claims) end
  local due = NOW + delay_ms
  redis.call('HSET', P .. 'job:' .. id, 'state', 'scheduled', 'history', move(id, q, job[3], 'scheduled', seq),
    'by', claims, 'error', body, 'due', due, 'attempts', attempts)
  schedule(id, due)
end

local function commit(i)
  local id, claims, entry, lane, user = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  local outcome, seq, body = ARGV[i + 5], tonumber(ARGV[i + 6]) + 1, ARGV[i + 7]
  local job = redis.call('HMGET', P .. 'job:' .. id, 'state', 'claims', 'history', 'attempts', 'tries', 'by')
  if job[1] ~= 'in_progress' or job[2] ~= claims then return job[6] == claims and 'mine' or 'lost' end
  if outcome == 'release' then
    redis.call('HSET', P .. 'job:' .. id, 'by', claims)
    give_back(id, q, lane, user, entry, claims, job[3], seq)
    return 'stored'
  end
  leave(id, claims, entry, lane, user)
  if outcome == 'retry' then
    retry(id, job, seq, body, tonumber(ARGV[i + 9]), claims)
  else
    stop(id, outcome, job, seq, outcome == 'failed' and 'error' or 'result', body, ARGV[i + 8], claims)
  end
  return 'stored'
end

for i = 5, #ARGV, 10 do append(answers, commit(i)) end
for stream, ids in pairs(entries) do
  redis.pcall('XACK', stream, 'workers', unpack(ids)) -- pcall: the group may be lost
  redis.call('XDEL', stream, unpack(ids))
  drop_if_empty(q, places[stream][1], places[stream][2])
end
if #leases > 0 then redis.call('ZREM', q .. 'leases', unpack(leases)) end
if #closed > 0 then redis.call('ZREM', P .. 'expiry', unpack(closed)) end
finish(EVENTS_KEPT)
return answers
