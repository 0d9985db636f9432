-- batch_renew: keep a batch, and say how far the lines under way are; or, with a lease of 0, let another have it.
-- KEYS[1] shard prefix
-- ARGV    id, owner, lease_ms, lines under way that have ended: '<completed> <failed>' ('': not known yet)
-- returns {state, milliseconds until its window ends}, or {} when it is another's now
-- atomic because a process that lost the batch must not take it back.
-- include job.lua
-- include batch.lua
even_when_full()
local id = ARGV[1]
if not has(id, ARGV[2]) then return {} end
redis.call('ZADD', DUE, NOW + ARGV[3], id)
if ARGV[3] == '0' then
  redis.call('HDEL', key_of(id), 'owner')
  redis.call('HINCRBY', key_of(id), 'claims', -1) -- it was handed on, nobody died of it
  wake()
end
local now = redis.call('HMGET', key_of(id), 'state', 'expires_ms', 'live')
if ARGV[4] ~= '' and now[3] ~= ARGV[4] then
  if ARGV[4] ~= '0 0' then redis.call('HDEL', key_of(id), 'claims') end -- it got on
  redis.call('HSET', key_of(id), 'live', ARGV[4])
  changed(id)
end
return {now[1], tonumber(now[2]) - NOW}
