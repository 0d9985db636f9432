-- batch.lua: what the scripts of batches and files share. Included after job.lua; not run by itself.
-- A batch is a hash: `about` (what was asked, JSON), `state`, one stamp for each state it has had, counts, usage. While
-- it is unfinished it stands in `batches:due`, at the time from which a process may take it: the end of the lease of
-- the one that has it. `owner` is that one's name, and the fence of all it writes.
local DUE = P .. 'batches:due'
local NEXT = { -- from each state to where it may go; common/batches.py has the same table
  validating = {in_progress = 1, cancelling = 1, failed = 1, expired = 1},
  in_progress = {finalizing = 1, cancelling = 1, failed = 1},
  finalizing = {completed = 1, expired = 1, failed = 1},
  cancelling = {cancelled = 1, failed = 1},
}
local function key_of(id) return P .. 'batch:' .. id end

local function seconds() return string.format('%d', math.floor(NOW / 1000)) end

-- Whether `owner` still has the batch. One that fell silent for longer than its lease may have lost it to another.
local function has(id, owner) return redis.call('HGET', key_of(id), 'owner') == owner end

-- Readers of its events see by the number that something has changed.
local function changed(id) return redis.call('HINCRBY', key_of(id), 'seq', 1) end

-- The one place where a batch's state changes. False when it may not go there from where it is.
local function turn(id, to)
  local from = redis.call('HGET', key_of(id), 'state')
  if not from or not (NEXT[from] and NEXT[from][to]) then return false end
  redis.call('HSET', key_of(id), 'state', to, to .. '_at', seconds())
  changed(id)
  return true
end

-- A batch is over: called once for each, by the script that stores its end. Webhooks are told of it.
local function over(id)
  local known = redis.call('HMGET', key_of(id), 'about', 'state')
  local about, name = cjson.decode(known[1]), string.match(P, '{(%x+)}') .. string.sub(id, 7)
  local hook = type(about.hook) == 'table' and cjson.encode(about.hook)
  announce(name, 'batch.' .. known[2], about.user or 'anonymous', hook, {'subject', id})
  redis.call('SREM', P .. 'batches:open:' .. (about.user or 'anonymous'), id)
  redis.call('HDEL', key_of(id), 'owner', 'plan', 'live', 'claims')
  redis.call('ZREM', DUE, id)
  redis.call('DEL', key_of(id) .. ':parts')
end

-- Into the list of all, and into its owner's. `name` is files or batches.
local function list(name, id, owner)
  redis.call('ZADD', P .. name, 0, id)
  redis.call('ZADD', P .. name .. ':of:' .. owner, 0, id)
  redis.call('SADD', P .. name .. ':owners', owner)
end

local function put_file(id, record, until_ms, owner)
  redis.call('SET', P .. 'file:' .. id, record, 'PXAT', until_ms)
  list('files', id, owner)
end

local function wake()
  redis.call('RPUSH', P .. 'batches:bell', '1')
  redis.call('LTRIM', P .. 'batches:bell', 0, 0)
end
