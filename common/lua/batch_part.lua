-- batch_part: store where the answers of a stretch of lines are, and add them to the counts, once.
-- KEYS[1] shard prefix
-- ARGV    id, owner, number of the stretch, part (JSON), lines completed, lines failed, lines of other
--         stretches that have ended ('<completed> <failed>'), then name and count of each usage
-- returns 'stored', 'mine' (this stretch was stored before) or 'lost' (the batch is another's now)
-- atomic because a stretch must be counted exactly once, and only by who has the batch.
-- include job.lua
-- include batch.lua
even_when_full()
local id = ARGV[1]
if not has(id, ARGV[2]) then return 'lost' end
if redis.call('HSETNX', key_of(id) .. ':parts', ARGV[3], ARGV[4]) == 0 then return 'mine' end
redis.call('HINCRBY', key_of(id), 'completed', ARGV[5])
redis.call('HINCRBY', key_of(id), 'failed', ARGV[6])
for i = 8, #ARGV, 2 do redis.call('HINCRBY', key_of(id), ARGV[i], ARGV[i + 1]) end
redis.call('HSET', key_of(id), 'live', ARGV[7])
redis.call('HDEL', key_of(id), 'claims') -- it got on
changed(id)
return 'stored'
