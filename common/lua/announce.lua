-- announce: tell a user's endpoints of something that is not one job's end (a batch's, say). Safe to repeat: the same
--           event is told once. Or send one endpoint a sample, whatever it wants: with its tries used up, so once.
-- KEYS[1] shard prefix
-- ARGV    event's id without `evt_`, type, user, what it is about (an id), a webhook of its own (JSON; '': none),
--         the endpoint that gets a sample ('': all that want the event)
-- returns how many deliveries were made
-- atomic because an event must be in the outbox for all of its readers or for none.
-- include job.lua
local name, kind, user, subject, hook, sampled = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
if redis.call('SET', P .. 'announced:' .. name, '1', 'NX', 'PX', 86400000) == false then return 0 end
local before = redis.call('ZCARD', P .. 'outbox')
local fields = {'user', user, 'subject', subject}
if sampled ~= '' then
  local once = {'tries', 1000, 'endpoint', sampled, unpack(fields)}
  post(name .. '-' .. string.sub(sampled, 4), 'evt_' .. name, kind, once)
  return 1
end
post_to_endpoints(user, name, 'evt_' .. name, kind, fields)
if hook ~= '' then
  append(fields, 'hook', hook)
  post(name, 'evt_' .. name, kind, fields)
end
return redis.call('ZCARD', P .. 'outbox') - before
