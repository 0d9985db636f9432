-- api_key_applied: limits and shares of API keys are where submits and claims read them, unless a key changed since.
-- KEYS[1] shard prefix
-- ARGV    the version of all keys before that work began, then the ids
-- returns 1, or 0 when a key has changed meanwhile: then it is to be done again
-- atomic because a change between the look and the removal would be forgotten.
-- include job.lua
-- include api_keys.lua
if (redis.call('GET', P .. 'api_keys:version') or '0') ~= ARGV[1] then return 0 end
for i = 2, #ARGV do redis.call('HDEL', P .. 'api_keys:dirty', ARGV[i]) end
return 1
