-- hook: note on one shard what a user's endpoint wants to be told, for the scripts that end jobs there.
-- KEYS[1] shard prefix
-- ARGV    user, endpoint, version of it, event types with a space before each ('': none any more)
-- returns nothing
-- atomic because an older version that comes late must not replace a newer one.
-- include job.lua
local user, id, version, kinds = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local key = P .. 'hooks:' .. user
local kept = redis.call('HGET', key, id)
if kept and tonumber(string.match(kept, '^%d+')) > version then return end
if kinds == '' then redis.call('HDEL', key, id) else redis.call('HSET', key, id, ARGV[3] .. kinds) end
if redis.call('EXISTS', key) == 1 then
  redis.call('SADD', P .. 'owners', user)
else
  redis.call('SREM', P .. 'owners', user)
end
