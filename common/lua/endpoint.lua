-- endpoint: write a standing endpoint, if it is still what the caller read; or remove it.
-- KEYS[1] shard prefix
-- ARGV    id, user, document before ('': it is new), document after ('': it goes), most endpoints of a user
-- returns 'ok' | 'changed' (it is not what the caller read) | 'full' (the user has as many as it may)
-- atomic because two changes at once must not undo each other, and a user's bound must hold.
-- include job.lua
local id, user, before, after = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local key, own = P .. 'endpoint:' .. id, P .. 'endpoints:' .. user
local kept = redis.call('GET', key) or ''
if kept == after then return 'ok' end -- this very call was made before, and its reply lost
if kept ~= before then return 'changed' end
if after == '' then
  redis.call('DEL', key)
  redis.call('SREM', own, id)
  redis.call('ZREM', P .. 'endpoints', id)
  return 'ok'
end
if before == '' then
  if redis.call('SCARD', own) >= tonumber(ARGV[5]) then return 'full' end
  redis.call('SADD', own, id)
  redis.call('ZADD', P .. 'endpoints', NOW_TEXT, id)
end
redis.call('SET', key, after)
return 'ok'
