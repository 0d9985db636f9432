-- api_key_revoke: an API key counts no more, for ever.
-- KEYS[1] shard prefix
-- ARGV    id, who asks
-- returns 'done' | 'same' (it was revoked before) | 'none'
-- atomic because what is audited must have happened, once.
-- include job.lua
-- include api_keys.lua
even_when_full()
local id = ARGV[1]
local known = redis.call('HMGET', key_of(id), 'owner', 'revoked')
if not known[1] then return 'none' end
if known[2] and known[2] ~= '0' then return 'same' end
redis.call('HSET', key_of(id), 'revoked', NOW_TEXT)
redis.call('HDEL', key_of(id), 'old_digest', 'old_until')
changed(id)
audit(ARGV[2], 'revoke', id, known[1], '{}')
return 'done'
