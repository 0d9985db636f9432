-- follow: somebody begins to read the events of these jobs as they come: what there is so far.
-- KEYS[1] shard prefix
-- ARGV    how long the note holds (ms), most events of a job, then 2 per job: id, number of the last event that is known
-- returns for each job {history, error, token events after that number}; {false} for one that is not there
-- atomic because a token must be seen here or told to the readers, whichever comes first, and because the history and
--         the token events must be of one moment.
-- include job.lua
redis.call('ZREMRANGEBYSCORE', P .. 'readers', '-inf', NOW)
local places, found = {}, {}
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  append(places, NOW + ARGV[1], id)
  local job = redis.call('HMGET', P .. 'job:' .. id, 'history', 'error')
  local tokens = {}
  if job[1] and #job[1] > 15 then -- it has run, or was scheduled
    tokens = redis.call('XRANGE', P .. 'tokens:' .. id, string.format('%d-0', ARGV[i + 1] + 1), '+', 'COUNT', ARGV[2])
  end
  append(found, job[1] and {job[1], job[2], tokens} or {false})
end
redis.call('ZADD', P .. 'readers', unpack(places))
return found
