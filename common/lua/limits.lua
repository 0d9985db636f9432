-- limits.lua: so much of something in a window (GCRA): a bucket for each limit of a subject, which a taking fills and
-- time drains at amount/window, and which nothing may fill above its burst. Included by job.lua.
-- Limits are rows {what, amount, window in ms, burst}, as common/policies.py writes them.
-- `P bucket:<subject>` is `<at> <born>` (microseconds; milliseconds), then `<name>=<number>` of each: a level by
-- `<what>-<window>` as it was at that time, and by `<what>` all that was ever taken since the bucket was born. It is read
-- once a call, written once (`keep_buckets`), and gone when all has drained.
local NOW_US = clock[1] * 1000000 + clock[2]
local buckets = {}

local function level_name(limit) return limit[1] .. '-' .. string.format('%d', limit[3]) end

local function bucket_of(subject, limits)
  local bucket = buckets[subject]
  if bucket then return bucket end
  bucket = {limits = limits, born = NOW, level = {}, taken = {}}
  buckets[subject] = bucket
  local kept, known = redis.call('GET', P .. 'bucket:' .. subject), {}
  local at
  if kept then
    local first, born, rest = string.match(kept, '^(%d+) (%d+)(.*)$')
    at, bucket.born = tonumber(first), tonumber(born)
    for name, number in string.gmatch(rest, ' ([^ =]+)=(%S+)') do known[name] = tonumber(number) end
    bucket.changed = at > NOW_US -- the clock was put back: nothing drains by that, and all goes on from there
  end
  for _, limit in ipairs(limits) do
    local name, what = level_name(limit), limit[1]
    local level = known[name] or 0
    if level > 0 then level = math.max(0, level - math.max(0, NOW_US - at) * limit[2] / (limit[3] * 1000)) end
    bucket.level[name], bucket.taken[what] = level, known[what] or 0
  end
  return bucket
end

local function fill(bucket, what, by)
  for _, limit in ipairs(bucket.limits) do
    if limit[1] == what then
      local name = level_name(limit)
      bucket.level[name] = bucket.level[name] + by
    end
  end
  if bucket.taken[what] then bucket.taken[what] = bucket.taken[what] + by end
  bucket.changed = true
end

-- Take what is needed (by what it is) from all limits, or from none. Returns nothing when it was taken; else how long
-- until all of it fits (ms; -1: never, it is more than the burst), and the limits in the way.
local function take_from(subject, limits, needs)
  local bucket, wait, violated = bucket_of(subject, limits), 0, {}
  for _, limit in ipairs(limits) do
    local need, burst = needs[limit[1]] or 0, limit[4]
    if need > 0 then
      local over = bucket.level[level_name(limit)] + need - burst
      if need > burst then
        if wait >= 0 then wait, violated = -1, {} end
        append(violated, limit)
      elseif over > burst * 1e-9 and wait >= 0 then -- what rounding adds up to is not over
        wait = math.max(wait, math.ceil(over * limit[3] / limit[2] - 1e-6))
        append(violated, limit)
      end
    end
  end
  if #violated > 0 then return wait, violated end
  for what, need in pairs(needs) do
    if need > 0 then fill(bucket, what, need) end
  end
end

-- What `settle` needs to know later of what was just taken: `<what> <taken> <all that was taken by then>`, of each.
local function held_of(subject, needs)
  local bucket, held = buckets[subject], {}
  for what, need in pairs(needs) do
    if need > 0 and what ~= 'requests' and bucket.taken[what] then
      append(held, string.format('%s %.17g %.17g', what, need, bucket.taken[what]))
    end
  end
  return table.concat(held, ' ')
end

-- Correct what was taken at `since` (ms) by what was really used; what `used` does not name was used as taken.
-- Too little was taken: the rest is taken now, be there room or not. Too much: it comes back as far as it has not
-- drained meanwhile. A bucket drains what was taken first first, so that what is left of this lies before all that was
-- taken after it: were more given back, who holds on to much and gives it back late would get it twice.
local function settle(subject, limits, held, used, since)
  local bucket = bucket_of(subject, limits)
  for what, taken, last in string.gmatch(held, '(%S+) (%S+) (%S+)') do
    local over = (used[what] or taken) - taken
    if over > 0 then
      fill(bucket, what, over)
    elseif over < 0 and bucket.born <= since then
      for _, limit in ipairs(limits) do
        if limit[1] == what then
          local name = level_name(limit)
          local left = bucket.level[name] - (bucket.taken[what] - last)
          bucket.level[name] = bucket.level[name] - math.max(0, math.min(-over, left))
        end
      end
      bucket.changed = true
    end
  end
end

-- How a subject's limits stand: `<what> <window> <amount> <left> <ms until all is there again>` of each, with `;` between.
local function standing_of(subject, limits)
  local bucket, out = bucket_of(subject, limits), {}
  for _, limit in ipairs(limits) do
    local level = bucket.level[level_name(limit)]
    local left = math.max(0, limit[4] - level)
    if limit[1] ~= 'cost' then left = math.floor(left + 1e-6) end
    append(out, string.format('%s %d %.14g %.14g %d', limit[1], limit[3], limit[2], left,
      math.ceil(level * limit[3] / limit[2])))
  end
  return table.concat(out, ';')
end

local function keep_buckets()
  for subject, bucket in pairs(buckets) do
    if bucket.changed then
      local out, longest = {string.format('%d %d', NOW_US, bucket.born)}, 0
      for _, limit in ipairs(bucket.limits) do
        local name = level_name(limit)
        append(out, string.format('%s=%.17g', name, bucket.level[name]))
        longest = math.max(longest, math.ceil(bucket.level[name] * limit[3] / limit[2]))
      end
      for what, taken in pairs(bucket.taken) do append(out, string.format('%s=%.17g', what, taken)) end
      if longest > 0 then
        redis.call('SET', P .. 'bucket:' .. subject, table.concat(out, ' '), 'PX', string.format('%d', longest + 1))
      else
        redis.call('DEL', P .. 'bucket:' .. subject)
      end
    end
  end
end
