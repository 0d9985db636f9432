-- settle: write down how an attempt at a delivery went, and when the next one is due, if there is one.
-- KEYS[1] shard prefix
-- ARGV    name, number of its claim, status after it (pending | delivered | failed), ms until the next attempt, the
--         attempt (JSON; '': none was made, it only waits), the body to send from now on ('': as it was), attempts kept,
--         retention_ms of what has ended, the counter that goes up
-- returns 1, or 0 when the delivery was claimed again meanwhile, or settled by this claim: then nothing is written
-- atomic because a worker whose lease has ended must not undo what another one wrote.
-- include job.lua
even_when_full()
local name, status, attempt = ARGV[1], ARGV[3], ARGV[5]
local key, attempts = P .. 'delivery:' .. name, P .. 'attempts:' .. name
if redis.call('HGET', key, 'claims') ~= ARGV[2] then return 0 end
redis.call('HINCRBY', key, 'claims', 1) -- so that this call, sent again after a lost reply, is nobody's
if attempt ~= '' then
  redis.call('RPUSH', attempts, attempt)
  redis.call('LTRIM', attempts, -ARGV[7], -1)
  redis.call('HINCRBY', key, 'tries', 1)
  redis.call('HINCRBY', key, 'attempts', 1)
  redis.call('HINCRBY', P .. 'outbox:counts', ARGV[9], 1)
end
if ARGV[6] ~= '' then redis.call('HSET', key, 'body', ARGV[6]) end
if status == 'pending' then
  redis.call('ZADD', P .. 'outbox', string.format('%d', NOW + ARGV[4]), name)
  return 1
end
redis.call('HSET', key, 'status', status, 'ended', NOW_TEXT)
redis.call('HINCRBY', P .. 'outbox:counts', status, 1)
redis.call('ZREM', P .. 'outbox', name)
redis.call('PEXPIRE', key, ARGV[8])
redis.call('PEXPIRE', attempts, ARGV[8])
return 1
