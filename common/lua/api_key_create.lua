-- api_key_create: keep a new API key; from the first one on, no call is served without a key.
-- KEYS[1] shard prefix
-- ARGV    id, most keys, 1 (only if no key was ever made) or 0, who asks, detail for the audit (JSON), owner, digest,
--         then the other fields and values of its record
-- returns 'new' | 'same' (sent again) | 'taken' | 'full' | 'not_first'
-- atomic because a key must be in the lists and in the audit exactly when it counts, and of two who want to make the
--         first one only one may.
-- include job.lua
-- include api_keys.lua
local id, actor, owner, digest = ARGV[1], ARGV[4], ARGV[6], ARGV[7]

-- Room is made by those that were revoked, whose record is only there to be looked at.
local function full()
  if redis.call('ZCARD', P .. 'api_keys') < tonumber(ARGV[2]) then return false end
  for _, known in ipairs(redis.call('ZRANGE', P .. 'api_keys', 0, -1)) do
    local old = redis.call('HMGET', key_of(known), 'revoked', 'owner')
    if old[1] and old[1] ~= '0' then
      redis.call('DEL', key_of(known))
      redis.call('ZREM', P .. 'api_keys', known)
      redis.call('SREM', P .. 'api_keys:of:' .. old[2], known)
      changed(known)
      return false
    end
  end
  return true
end

local known = redis.call('HGET', key_of(id), 'digest')
if known then return known == digest and 'same' or 'taken' end
if ARGV[3] == '1' and redis.call('EXISTS', P .. 'api_keys:made') == 1 then return 'not_first' end
if full() then return 'full' end
redis.call('HSET', key_of(id), 'owner', owner, 'digest', digest, 'created', NOW_TEXT, unpack(ARGV, 8))
redis.call('ZADD', P .. 'api_keys', NOW_TEXT, id)
redis.call('SADD', P .. 'api_keys:of:' .. owner, id)
redis.call('SET', P .. 'api_keys:made', NOW_TEXT)
changed(id)
audit(actor, 'create', id, owner, ARGV[5])
return 'new'
