-- trim: forget in the index the oldest jobs whose records are gone.
-- KEYS[1] shard prefix
-- ARGV    most entries in one call
-- returns {entries removed, -1}
-- atomic because an entry must go only if its record is gone at that moment.
-- include job.lua
even_when_full()
local gone = {}
for _, entry in ipairs(redis.call('XRANGE', P .. 'index', '-', '+', 'COUNT', ARGV[1])) do
  if redis.call('EXISTS', P .. 'job:' .. entry[2][2]) == 0 then append(gone, entry[1]) end
end
if #gone > 0 then redis.call('XDEL', P .. 'index', unpack(gone)) end
return {#gone, -1}
