-- api_keys.lua: what the scripts of API keys share. Included after job.lua; not run by itself.
-- A key is a hash: name, owner, tier, limits and scopes (JSON), `digest` of its text and, while that still counts, of
-- the text before it; times in ms. Nothing here ever sees a key's text.
local function key_of(id) return P .. 'api_key:' .. id end

-- Who did what to which key, or other thing. `detail` is JSON of names and numbers only.
local function audit(actor, action, id, owner, detail)
  redis.call('XADD', P .. 'audit', 'MAXLEN', '~', 10000, '*', 'actor', actor, 'action', action, 'thing', id,
    'owner', owner, 'detail', detail)
end

-- A key changed: until `api_key_applied` hears that its limits and its owner's share are where they are read, it is
-- among those that have to be brought there, by whoever comes next.
local function changed(id)
  redis.call('HSET', P .. 'api_keys:dirty', id, redis.call('INCR', P .. 'api_keys:version'))
end
