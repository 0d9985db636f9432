-- help: claim for a worker of a fallback model, which runs what the queue's own workers do not get to: every job
--       while none of those before it in the chain is alive, else as many as have waited longer than the bound.
--       An answer that was begun is left to them: it can only go on with the model that began it.
-- KEYS[1] shard prefix
-- ARGV    the nine of claim, then the bound in ms, then the aliases between the queue's own model and this one
-- returns what claim returns
-- atomic because a job must have its lease the moment it leaves the queue; that no other worker was there to take
--         it is true of the same moment.
-- include job.lua
local function main()
-- include claiming.lua
local AFTER_MS = tonumber(ARGV[10])

-- A worker that helps says in its name whose model it runs: `<worker>@<alias>`.
local function is_before(name)
  local alias = string.match(name, '@(.+)')
  if not alias then return true end
  for i = 11, #ARGV do
    if ARGV[i] == alias then return true end
  end
  return false
end

local function alone()
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', q .. 'workers', NOW, '+inf')) do
    if is_before(name) then return false end
  end
  return true
end

-- How many of a lane's jobs have waited too long, up to most: of those given back, and of 64 users.
local function overdue(lane, most)
  local n, before = 0, NOW - AFTER_MS
  for _, id in ipairs(redis.call('LRANGE', q .. lane .. ':returned', 0, most - 1)) do
    local history = redis.call('HGET', JOB .. id, 'history')
    if history and since_of(history) <= before and not has_begun(id) then n = n + 1 end
  end
  for _, user in ipairs(redis.call('ZRANGE', q .. lane .. ':users', 0, 63)) do
    if n >= most then return most end
    n = n + #redis.call('XRANGE', stream_of(q, lane, user), '-', before, 'COUNT', most - n)
  end
  return n
end

if not alone() then
  local n = 0
  for _, lane in ipairs(LANES) do n = n + (want > n and overdue(lane, want - n) or 0) end
  want = n
end
helping = true
claim_or_repeat()
finish(ARGV[7])
return taken
end
return main()
