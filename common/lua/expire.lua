-- expire: jobs whose time to live has ended, waiting or running, become `expired`.
-- KEYS[1] shard prefix
-- ARGV    most jobs in one call, retention_ms, events_kept
-- returns {jobs ended, milliseconds until the next may expire (-1: none)}
-- atomic because a job must not be claimed or committed between the look and the end.
-- include job.lua
even_when_full()
local ids = redis.call('ZRANGEBYSCORE', P .. 'expiry', '-inf', NOW, 'LIMIT', 0, ARGV[1])
for _, id in ipairs(ids) do
  end_job(id, 'expired', 'expired', 'its time to live ended before its result was there', ARGV[2])
  redis.call('ZREM', P .. 'expiry', id) -- also when its record is gone
end
finish(ARGV[3])
local first = redis.call('ZRANGE', P .. 'expiry', 0, 0, 'WITHSCORES')[2]
return {#ids, first and math.max(0, first - NOW) or -1}
