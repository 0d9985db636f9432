-- leave: a worker says goodbye; it counts as alive no longer.
-- KEYS[1] shard prefix
-- ARGV    queue, worker
-- returns 1
-- atomic because a worker is either listed with its description or not at all.
-- include job.lua
even_when_full()
local q, worker = at(ARGV[1]), ARGV[2]
redis.call('ZREM', q .. 'workers', worker)
redis.call('DEL', q .. 'worker:' .. worker, q .. 'claimed:' .. worker, q .. 'control:' .. worker)
ring(q) -- it may have taken the bell's token with it
return 1
