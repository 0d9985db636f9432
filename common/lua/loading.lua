-- loading: a worker says that its model is being loaded, or that this is over.
-- KEYS[1] shard prefix
-- ARGV    queue, worker, for how long it counts as that (ms; 0: it is over)
-- returns 1
-- atomic because the time is Redis' own, as for those who look.
-- include job.lua
even_when_full()
local key = at(ARGV[1]) .. 'loading'
redis.call('ZREMRANGEBYSCORE', key, '-inf', NOW)
if ARGV[3] == '0' then
  redis.call('ZREM', key, ARGV[2])
else
  redis.call('ZADD', key, string.format('%d', NOW + ARGV[3]), ARGV[2])
end
return 1
