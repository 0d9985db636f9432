-- foresee: keep what was foretold of jobs, so that it is judged when they end.
-- KEYS[1] shard prefix
-- ARGV    2 per job: id, `<class> <when it was made, ms> <50 %, ms> <90 %, ms> <the 90 % that was told, ms>`
-- returns nothing
-- atomic because only the first forecast of a job counts, and one of a job that has ended meanwhile counts at once:
--         else the jobs that end soonest would be missing among those that ended in time. A record that is gone must
--         not come back as this one field.
-- include job.lua
-- include pace.lua
for i = 1, #ARGV, 2 do
  local key = P .. 'job:' .. ARGV[i]
  local job = redis.call('HMGET', key, 'ticket', 'history', 'eta')
  if job[1] and not job[3] then
    redis.call('HSET', key, 'eta', ARGV[i + 1])
    local code = code_of(job[2])
    if code == 'c' or code == 'i' or code == 'f' then
      judge(at(of_ticket(job[1]).queue), ARGV[i + 1], since_of(job[2]))
    end
  end
end
finish(0)
