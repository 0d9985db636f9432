-- batch_cancel: ask for a batch to stop; whoever has it sees that when it next renews.
-- KEYS[1] shard prefix
-- ARGV    id
-- returns the state after, or false when there is no such batch; one that is over or nearly so is left as it is
-- atomic because a batch must not end between the look and the change.
-- include job.lua
-- include batch.lua
even_when_full()
local id = ARGV[1]
if turn(id, 'cancelling') then wake() end
return redis.call('HGET', key_of(id), 'state')
