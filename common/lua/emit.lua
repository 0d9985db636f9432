-- emit: append token and progress events of running jobs.
-- KEYS[1] shard prefix
-- ARGV    kept, then 5 per event: id, claims, sequence number, event, data (JSON)
-- returns the leases (`id:claims`) that are not the caller's any more; nothing was written for those
-- atomic because a worker that lost its lease must not write into a stream that another one continues. The sequence
--         number is the entry's id: an event sent again after a lost reply is refused by the stream itself.
-- include job.lua
even_when_full()
local mine, lost, news = {}, {}, {}

local function owns(id, claims)
  local held = id .. ':' .. claims
  if mine[held] == nil then
    local job = redis.call('HMGET', P .. 'job:' .. id, 'state', 'claims')
    mine[held] = job[1] == 'in_progress' and job[2] == claims
    if not mine[held] then append(lost, held) end
  end
  return mine[held]
end

for i = 2, #ARGV, 5 do
  local id = ARGV[i]
  if owns(id, ARGV[i + 1]) then
    local seq, event, data = ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
    redis.pcall('XADD', P .. 'tokens:' .. id, 'MAXLEN', '~', ARGV[1], seq .. '-0', 'e', event, 'd', data)
    append(news, id, seq .. ' ' .. event .. ' ' .. data)
  end
end
if #news > 0 then redis.call('XADD', P .. 'ticks', 'MAXLEN', '~', 1000, '*', unpack(news)) end
return lost
