-- file_delete: forget a file.
-- KEYS[1] shard prefix
-- ARGV    id, its owner
-- returns its record (JSON), or false when there is no such file
-- atomic because of two callers who delete it only one must be told so.
-- include job.lua
-- include batch.lua
even_when_full()
local record = redis.call('GET', P .. 'file:' .. ARGV[1])
redis.call('DEL', P .. 'file:' .. ARGV[1])
redis.call('ZREM', P .. 'files', ARGV[1])
if record then redis.call('ZREM', P .. 'files:of:' .. ARGV[2], ARGV[1]) end
return record
