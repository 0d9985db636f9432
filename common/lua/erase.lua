-- erase: end a job wherever it stands, and remove its record and its events: as if its retention were over.
-- KEYS[1] shard prefix
-- ARGV    id, retention_ms, events_kept
-- returns {what was asked, its result} ('' for what there is none of; either may be a reference to the blob store), or
--         false when there is no such job
-- atomic because a worker that holds the job must lose its lease at the moment at which its record goes, else it
--         would write events that nothing removes.
-- include job.lua
even_when_full()
local key = P .. 'job:' .. ARGV[1]
local kept = redis.call('HMGET', key, 'work', 'result')
if not end_job(ARGV[1], 'x', 'cancelled', 'deleted by request', ARGV[2]) then return false end
redis.call('DEL', key, P .. 'tokens:' .. ARGV[1])
redis.call('ZREM', P .. 'parked', ARGV[1])
redis.call('HDEL', P .. 'parked:info', ARGV[1])
finish(ARGV[3])
return {kept[1] or '', kept[2] or ''}
