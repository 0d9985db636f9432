-- emit: append token and progress events of running jobs.
-- KEYS[1] shard prefix
-- ARGV    kept, then 4 per event: lease, number, event, data (JSON)
-- returns {the leases that are not the caller's any more, for which nothing was written; the ids that somebody reads}
-- atomic because a worker that lost its lease must not write into a stream that another one continues. The number is
--         the entry's id: an event sent again after a lost reply is refused by the stream itself.
-- include job.lua
even_when_full()
local mine, ids, lost, read, news = {}, {}, {}, {}, {}

local function owns(held)
  if mine[held] == nil then
    local id, step = of_lease(held)
    local history = redis.call('HGET', P .. 'job:' .. id, 'history')
    mine[held] = history and is_last(history, step) and id or false
    append(mine[held] and ids or lost, mine[held] or held)
  end
  return mine[held]
end

for i = 2, #ARGV, 4 do
  local id = owns(ARGV[i])
  if id then
    local number, event, data = ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
    redis.pcall('XADD', P .. 'tokens:' .. id, 'MAXLEN', '~', ARGV[1], number .. '-0', 'e', event, 'd', data)
    append(news, id, number .. ' ' .. event .. ' ' .. data)
  end
end

-- Only what somebody reads goes to the web processes too. Readers look for themselves at first, after they were noted.
local readers = #ids > 0 and redis.call('ZMSCORE', P .. 'readers', unpack(ids)) or {}
for i, id in ipairs(ids) do
  if readers[i] and tonumber(readers[i]) > NOW then
    append(read, id)
    read[id] = true
  end
end
local told = {}
for i = 1, #news, 2 do
  if read[news[i]] then append(told, news[i], news[i + 1]) end
end
if #told > 0 then redis.call('XADD', P .. 'ticks', 'MAXLEN', '~', 1000, '*', unpack(told)) end
return {lost, read}
