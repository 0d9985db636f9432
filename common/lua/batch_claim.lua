-- batch_claim: give the unfinished batch that has waited longest to a process, with a lease.
-- KEYS[1] shard prefix
-- ARGV    owner, lease_ms, claims without getting on after which a batch is given to nobody any more
-- returns {id, how often it was claimed since it last got on} or {} when every unfinished one is in somebody's hands
-- atomic because two processes must never have the same batch.
-- include job.lua
-- include batch.lua
even_when_full()
for _, id in ipairs(redis.call('ZRANGEBYSCORE', DUE, '-inf', NOW_TEXT, 'LIMIT', 0, 100)) do
  local claims = redis.call('EXISTS', key_of(id)) == 1 and redis.call('HINCRBY', key_of(id), 'claims', 1)
  if claims and claims <= tonumber(ARGV[3]) then
    redis.call('ZADD', DUE, NOW + ARGV[2], id)
    redis.call('HSET', key_of(id), 'owner', ARGV[1])
    return {id, claims}
  end
  redis.call('ZREM', DUE, id)
end
return {}
