-- api_key_rotate: another secret for an API key; the one before counts for a while.
-- KEYS[1] shard prefix
-- ARGV    id, who asks, detail for the audit (JSON), digest of the new text, how long the old one counts (ms)
-- returns 'done' | 'same' (sent again) | 'revoked' | 'none'
-- atomic because at no moment may both be refused, and what is audited must have happened.
-- include job.lua
-- include api_keys.lua
even_when_full()
local id, digest = ARGV[1], ARGV[4]
local known = redis.call('HMGET', key_of(id), 'digest', 'revoked', 'owner')
if not known[1] then return 'none' end
if known[2] and known[2] ~= '0' then return 'revoked' end
if known[1] == digest then return 'same' end
local grace = tonumber(ARGV[5])
if grace > 0 then
  redis.call('HSET', key_of(id), 'old_digest', known[1], 'old_until', string.format('%d', NOW + grace))
else
  redis.call('HDEL', key_of(id), 'old_digest', 'old_until')
end
redis.call('HSET', key_of(id), 'digest', digest)
audit(ARGV[2], 'rotate', id, known[3], ARGV[3])
return 'done'
