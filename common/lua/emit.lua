-- emit: append token and progress events of running jobs.
-- KEYS[1] shard prefix
-- ARGV    kept, then 4 per event: lease, number, event, data (JSON)
-- returns {the leases that are not the caller's any more, for which nothing was written; the ids that nobody reads now}
-- atomic because a worker that lost its lease must not write into a stream that another one continues. The number is
--         the entry's id: an event sent again after a lost reply is refused by the stream itself.
-- include job.lua
even_when_full()
local JOB, TOKENS, KEPT = P .. 'job:', P .. 'tokens:', ARGV[1]
local mine, ids, lost, unread, news = {}, {}, {}, {}, {}
local call, pcall = redis.call, redis.pcall

local function owns(held)
  local id, step = of_lease(held)
  local history = call('HGET', JOB .. id, 'history')
  mine[held] = history and is_last(history, step) and id or false
  append(mine[held] and ids or lost, mine[held] or held)
  return mine[held]
end

for i = 2, #ARGV, 4 do
  local held = ARGV[i]
  local id = mine[held]
  if id == nil then id = owns(held) end
  if id then
    local number, event, data = ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
    pcall('XADD', TOKENS .. id, number .. '-0', 'e', event, 'd', data)
    -- Looking whether to trim costs half as much as the write.
    if number % 64 == 0 then call('XTRIM', TOKENS .. id, 'MAXLEN', '~', KEPT) end
    append(news, id, number .. ' ' .. event .. ' ' .. data)
  end
end

-- Only what somebody reads goes to the web processes too. Readers look for themselves at first, after they were noted.
local readers = #ids > 0 and call('ZMSCORE', P .. 'readers', unpack(ids)) or {}
local skip = {}
for i, id in ipairs(ids) do
  if not readers[i] or tonumber(readers[i]) <= NOW then
    append(unread, id)
    skip[id] = true
  end
end
local told = news
if #unread > 0 then
  told = {}
  for i = 1, #news, 2 do
    if not skip[news[i]] then append(told, news[i], news[i + 1]) end
  end
end
if #told > 0 then call('XADD', P .. 'ticks', 'MAXLEN', '~', 1000, '*', unpack(told)) end
return {lost, unread}
