-- file_put: keep a file's record, if there is room for one more.
-- KEYS[1] shard prefix
-- ARGV    id, record (JSON), its end (ms), its owner, most files, most of this owner (0: no bound)
-- returns 1, 0 when there are as many as there may be, or -1 when there are as many of this owner
-- atomic because a file must be in the list exactly when its record is there, and the bound must hold.
-- include job.lua
-- include batch.lua
if redis.call('EXISTS', P .. 'file:' .. ARGV[1]) == 1 then return 1 end
if redis.call('ZCARD', P .. 'files') >= tonumber(ARGV[5]) then return 0 end
local most = tonumber(ARGV[6])
if most > 0 and redis.call('ZCARD', P .. 'files:of:' .. ARGV[4]) >= most then return -1 end
put_file(ARGV[1], ARGV[2], ARGV[3], ARGV[4])
return 1
