-- trim: forget in the index jobs whose records are gone; one call looks at a stretch of it, oldest first. News of that
--         age go too: those two streams are bounded by their number of entries, and an entry may be of 500 jobs.
-- KEYS[1] shard prefix
-- ARGV    most entries in one call, start ('-' or '(<entry>'), age_ms that an entry must have to be looked at
-- returns {entries removed, start of the next call ('' at the end)}
-- atomic because an entry must go only if its record is gone at that moment.
-- include job.lua
even_when_full()
local SPENT_KEPT_MS = 86400000 -- past its time: what a running job uses beyond its guess still counts from there

-- An owner of whom nothing runs, or a limit that has been all free for long, leaves nothing behind.
local function forget_standing()
  local standing = redis.call('HGETALL', P .. 'standing')
  for i = 1, #standing, 2 do
    local kept_until = string.sub(standing[i], 1, 8) == 'running ' and 1 or (NOW - SPENT_KEPT_MS) * 1000
    if tonumber(standing[i + 1]) < kept_until then redis.call('HDEL', P .. 'standing', standing[i]) end
  end
end

if ARGV[2] == '-' then
  forget_standing()
  for _, news in ipairs({'events', 'ticks'}) do redis.call('XTRIM', P .. news, 'MINID', NOW - ARGV[3]) end
end
local entries = redis.call('XRANGE', P .. 'index', ARGV[2], NOW - ARGV[3], 'COUNT', ARGV[1])
local gone, of = {}, {}
for _, entry in ipairs(entries) do
  if redis.call('EXISTS', P .. 'job:' .. id_of(entry[2][2])) == 0 then
    local user = entry[2][4]
    of[user] = of[user] or {}
    append(gone, entry[1])
    append(of[user], entry[1])
  end
end
if #gone > 0 then redis.call('XDEL', P .. 'index', unpack(gone)) end
for user, some in pairs(of) do
  local own = P .. 'index:of:' .. user
  redis.call('XDEL', own, unpack(some))
  if redis.call('XLEN', own) == 0 then redis.call('DEL', own) end
end
if redis.call('XLEN', P .. 'index') == 0 then redis.call('DEL', P .. 'ordinary') end -- the next submit says anew
return {#gone, #entries == tonumber(ARGV[1]) and '(' .. entries[#entries][1] or ''}
