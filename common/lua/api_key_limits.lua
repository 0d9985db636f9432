-- api_key_limits: other limits, or another tier, for an API key.
-- KEYS[1] shard prefix
-- ARGV    id, who asks, detail for the audit (JSON), tier ('': as before), limits (JSON)
-- returns 'done' | 'revoked' | 'none'
-- atomic because what is audited must have happened, and its door must be brought up to date even if we die now.
-- include job.lua
-- include api_keys.lua
even_when_full()
local id = ARGV[1]
local known = redis.call('HMGET', key_of(id), 'owner', 'revoked')
if not known[1] then return 'none' end
if known[2] and known[2] ~= '0' then return 'revoked' end
redis.call('HSET', key_of(id), 'limits', ARGV[5])
if ARGV[4] ~= '' then redis.call('HSET', key_of(id), 'tier', ARGV[4]) end
changed(id)
audit(ARGV[2], 'limits', id, known[1], ARGV[3])
return 'done'
