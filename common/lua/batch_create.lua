-- batch_create: accept a batch: idempotency, the bound of unfinished ones, the record, its place among those to be done.
-- KEYS[1] shard prefix
-- ARGV    id, about (JSON), id of the input file, window_ms, most unfinished, idempotency digest ('' none), fingerprint,
--         idempotency_ms, its owner, most unfinished ones of this owner (0: no bound)
-- returns {'new' | 'same' | 'mismatch', id} | {'no_file'} | {'full'} | {'full_own'}
-- atomic because a batch must never be accepted twice for one key, nor for a file that was deleted meanwhile; the id is
--         made by the caller, so that sending the same call again after a lost reply changes nothing.
-- include job.lua
-- include batch.lua
local id, digest, fingerprint = ARGV[1], ARGV[6], ARGV[7]

local function earlier()
  if redis.call('EXISTS', key_of(id)) == 1 then return {'same', id} end
  local kept = digest ~= '' and redis.call('GET', P .. 'batches:idem:' .. digest)
  if not kept then return nil end
  local known_id, known = string.match(kept, '^(%S+) (.*)$')
  if redis.call('EXISTS', key_of(known_id)) == 0 then return nil end
  return {known == fingerprint and 'same' or 'mismatch', known_id}
end

-- As many of this owner as there may be. One that was given up without an end is not counted any more.
local function full_own(open, most)
  if most == 0 or redis.call('SCARD', open) < most then return false end
  for _, other in ipairs(redis.call('SMEMBERS', open)) do
    if not redis.call('ZSCORE', DUE, other) then redis.call('SREM', open, other) end
  end
  return redis.call('SCARD', open) >= most
end

local known = earlier()
if known then return known end
if redis.call('EXISTS', P .. 'file:' .. ARGV[3]) == 0 then return {'no_file'} end
if redis.call('ZCARD', DUE) >= tonumber(ARGV[5]) then return {'full'} end
local open = P .. 'batches:open:' .. ARGV[9]
if full_own(open, tonumber(ARGV[10])) then return {'full_own'} end
redis.call('SADD', open, id)
redis.call('HSET', key_of(id), 'about', ARGV[2], 'state', 'validating', 'seq', 1, 'created_at', seconds(),
  'expires_ms', string.format('%d', NOW + ARGV[4]), 'total', 0, 'completed', 0, 'failed', 0)
list('batches', id, ARGV[9])
redis.call('ZADD', DUE, NOW_TEXT, id)
if digest ~= '' then
  redis.call('SET', P .. 'batches:idem:' .. digest, id .. ' ' .. fingerprint, 'PX', ARGV[8])
end
wake()
return {'new', id}
