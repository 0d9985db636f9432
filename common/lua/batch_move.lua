-- batch_move: bring a batch to its next state, with the files and fields that belong to it.
-- KEYS[1] shard prefix
-- ARGV    id, owner, state, keep_ms (of a finished batch), number of files, then id, record (JSON), end (ms) and owner of each,
--         then name and value of each field
-- returns 'moved', 'not_allowed' (from the state it has) or 'lost' (the batch is another's now)
-- atomic because a finished batch and its files must appear together, and only its owner may finish it.
-- include job.lua
-- include batch.lua
even_when_full()
local id, to, files = ARGV[1], ARGV[3], tonumber(ARGV[5])
if not has(id, ARGV[2]) then return 'lost' end
if not turn(id, to) then return 'not_allowed' end
for i = 6, 5 + 4 * files, 4 do put_file(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]) end
for i = 6 + 4 * files, #ARGV, 2 do redis.call('HSET', key_of(id), ARGV[i], ARGV[i + 1]) end
if to == 'in_progress' then redis.call('HDEL', key_of(id), 'claims') end
if not NEXT[to] then -- it is over
  over(id)
  redis.call('PEXPIRE', key_of(id), ARGV[4])
end
return 'moved'
