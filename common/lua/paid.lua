-- paid.lua: jobs that are paid for: those that a worker has, and those that were given back and go first.
-- Included by promote.lua and share.lua.
local function each_paid(look)
  for _, queue in ipairs(redis.call('SMEMBERS', P .. 'queues')) do
    local q = at(queue)
    local ids = {}
    for _, held in ipairs(redis.call('ZRANGE', q .. 'leases', 0, -1)) do append(ids, (of_lease(held))) end
    for _, lane in ipairs(LANES) do
      for _, id in ipairs(redis.call('LRANGE', q .. lane .. ':returned', 0, -1)) do append(ids, id) end
    end
    for _, id in ipairs(ids) do
      local job = redis.call('HMGET', P .. 'job:' .. id, 'ticket', 'charged')
      if job[1] then look(id, q, look_at_ticket(job[1]), job[2]) end
    end
  end
end
