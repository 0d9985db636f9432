-- renew: keep a worker alive and its leases from ending.
-- KEYS[1] shard prefix
-- ARGV    queue, worker, lease_ms, what the worker says of itself (JSON), then the leases
-- returns the leases that are gone: expired and handed on, cancelled, or already committed
-- atomic because a lease must not end between being renewed and being reported. The fence is in the member's name:
--         a stale worker's member is simply not there (XX), so that it can renew nothing.
-- include job.lua
even_when_full()
local q, worker, until_ms = at(ARGV[1]), ARGV[2], NOW + ARGV[3]
redis.call('ZADD', q .. 'workers', until_ms, worker)
redis.call('SADD', P .. 'queues', ARGV[1])
redis.call('SET', q .. 'worker:' .. worker, ARGV[4], 'PX', ARGV[3])
local lost = {}
for i = 5, #ARGV do
  if redis.call('ZSCORE', q .. 'leases', ARGV[i]) then
    redis.call('ZADD', q .. 'leases', 'XX', until_ms, ARGV[i])
  else
    append(lost, ARGV[i])
  end
end
return lost
