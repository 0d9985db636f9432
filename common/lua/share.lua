-- share: what an owner may have of the machines from now on.
-- KEYS[1] shard prefix
-- ARGV    owner, his share (JSON; '': an ordinary one)
-- returns 1
-- atomic because what runs at that moment was charged by the share before, and must be given back by it.
-- include job.lua
-- include paid.lua
even_when_full()
local owner, text = ARGV[1], ARGV[2]
if text == (redis.call('HGET', P .. 'shares', owner) or '') then return 1 end
each_paid(function(id, q, ticket, charged)
  if ticket.user ~= owner or charged then return end
  charged = owners().charged_as(owners().share_of(owner), q, LEAST_COST, ticket.units)
  redis.call('HSET', P .. 'job:' .. id, 'charged', charged)
end)
if text == '' then redis.call('HDEL', P .. 'shares', owner) else redis.call('HSET', P .. 'shares', owner, text) end
if redis.call('ZSCORE', P .. 'held', owner) then owners().unhold(owner) end -- he may not have to be any more
return 1
