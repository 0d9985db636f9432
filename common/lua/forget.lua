-- forget: the list of deliveries forgets those whose records are gone; past its bound the oldest that have ended go.
-- KEYS[1] shard prefix
-- ARGV    most entries in one call, entries kept, how many of the oldest are passed over
-- returns {entries looked at, how many of them went}
-- atomic because an entry must go only if its record is gone, or has ended, at that moment.
-- include job.lua
even_when_full()
local went, first = 0, tonumber(ARGV[3])
local excess = redis.call('ZCARD', P .. 'deliveries') - ARGV[2] - first
local names = redis.call('ZRANGE', P .. 'deliveries', first, first + ARGV[1] - 1)
for i, name in ipairs(names) do
  local status = redis.call('HGET', P .. 'delivery:' .. name, 'status')
  if status and i <= excess and status ~= 'pending' then
    redis.call('DEL', P .. 'delivery:' .. name, P .. 'attempts:' .. name)
    status = false
  end
  if not status then
    redis.call('ZREM', P .. 'deliveries', name)
    went = went + 1
  end
end
return {#names, went}
