-- audit: note that an admin did something to what is another owner's.
-- KEYS[1] shard prefix
-- ARGV    who, what he does, id of the thing, whose it is
-- returns 1
-- atomic because it is one write.
-- include job.lua
-- include api_keys.lua
even_when_full()
audit(ARGV[1], ARGV[2], ARGV[3], ARGV[4], '{}')
return 1
