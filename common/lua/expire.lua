-- expire: jobs whose time to live has ended, waiting or running, become `expired`.
-- KEYS[1] shard prefix
-- ARGV    most jobs in one call, retention_ms, events_kept
-- returns {jobs looked at, milliseconds until the next may expire (-1: none)}
-- atomic because a job must not be claimed or committed between the look and the end.
-- include job.lua
even_when_full()
local LIMIT, RETENTION_MS = ARGV[1], ARGV[2]
local WHY = 'its time to live ended before its result was there'
local looked, next_at = 0, nil

-- Jobs with the ordinary time to live end in the order in which they came: the index is their list, read from where
-- the last call stopped. A set of them all would be a fifth of a waiting job's memory.
local function ordinary()
  local life = redis.call('HMGET', P .. 'ordinary', 'ttl_ms', 'walked')
  if not life[1] then return end
  local start = life[2] and '(' .. life[2] or '-'
  local entries = redis.call('XRANGE', P .. 'index', start, NOW - life[1], 'COUNT', LIMIT)
  for _, entry in ipairs(entries) do end_job(id_of(entry[2][2]), 'e', 'expired', WHY, RETENTION_MS, true) end
  if #entries > 0 then
    start = '(' .. entries[#entries][1]
    redis.call('HSET', P .. 'ordinary', 'walked', entries[#entries][1])
  end
  looked = #entries
  local first = redis.call('XRANGE', P .. 'index', start, '+', 'COUNT', 1)[1]
  if first then next_at = tonumber(string.match(first[1], '^%d+')) + life[1] end
end

-- Jobs with a time to live of their own.
local function own()
  local ids = redis.call('ZRANGEBYSCORE', P .. 'expiry', '-inf', NOW_TEXT, 'LIMIT', 0, LIMIT)
  for _, id in ipairs(ids) do
    end_job(id, 'e', 'expired', WHY, RETENTION_MS, true)
    redis.call('ZREM', P .. 'expiry', id) -- also when its record is gone
  end
  looked = looked + #ids
  local first = tonumber(redis.call('ZRANGE', P .. 'expiry', 0, 0, 'WITHSCORES')[2])
  if first then next_at = math.min(next_at or first, first) end
end

ordinary()
own()
finish(ARGV[3])
return {looked, next_at and math.max(0, next_at - NOW) or -1}
