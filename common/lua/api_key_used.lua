-- api_key_used: note that an API key was used just now.
-- KEYS[1] shard prefix
-- ARGV    id
-- returns 1, or 0 when there is no such key
-- atomic because a key whose record is gone must not come back as half a one.
-- include job.lua
-- include api_keys.lua
if redis.call('EXISTS', key_of(ARGV[1])) == 0 then return 0 end
redis.call('HSET', key_of(ARGV[1]), 'used', NOW_TEXT)
return 1
