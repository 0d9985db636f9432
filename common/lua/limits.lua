-- limits.lua: so much of something in a window (GCRA): a bucket for each limit of a subject, which a taking fills and
-- time drains at amount/window, and which no taking may fill above its burst. Included by job.lua.
-- Limits are rows {what, amount, window in ms, burst}, as common/policies.py writes them.
--
-- A bucket's level has two parts: `used`, and `held` for what has not ended, which may come back. What is used drains
-- first; then what is held, of every job the same share, so that one number for all (`share`, the logarithm of what is
-- left of what came first) says what is left of each. `since` names the stretch of time in which something was always
-- held: of an earlier one nothing is left. Never comes back more than has not drained: else who holds much for long and
-- gives it back late would have it twice.
-- `P bucket:<subject>` is `<at>`, then of each limit ` <what>-<window>=<used>,<held>,<since>,<share>` as it was at that
-- time (microseconds). It is read once a call, written once (`keep_buckets`), and gone when all has drained.
local function make_limits()
  local NOW_US = clock[1] * 1000000 + clock[2]
  local subjects = {}

  local function drain(bucket, by)
    local used = math.min(bucket.used, by)
    bucket.used, by = bucket.used - used, by - used
    if by < bucket.held * (1 - 1e-12) then
      bucket.share = bucket.share + math.log(1 - by / bucket.held)
      bucket.held = bucket.held - by
    else
      bucket.held = 0
    end
  end

  -- The buckets of a subject as they are now, in the order of its limits.
  local function buckets_of(subject, limits)
    local found = subjects[subject]
    if found then return found end
    found = {}
    subjects[subject] = found
    local kept, known, at = redis.call('GET', P .. 'bucket:' .. subject), {}, NOW_US
    if kept then
      at = tonumber(string.match(kept, '^%d+'))
      for name, used, held, since, share in string.gmatch(kept, ' ([^ =]+)=([^ ,]+),([^ ,]+),(%d+),(%S+)') do
        known[name] = {used = tonumber(used), held = tonumber(held), since = tonumber(since), share = tonumber(share)}
      end
      found.changed = at > NOW_US -- the clock was put back: nothing drains by that, and all goes on from there
    end
    for i, limit in ipairs(limits) do
      local name = limit[1] .. '-' .. string.format('%d', limit[3])
      local bucket = known[name] or {used = 0, held = 0, since = 0, share = 0}
      bucket.name, bucket.what, bucket.burst, bucket.rate = name, limit[1], limit[4], limit[2] / limit[3]
      if kept then drain(bucket, math.max(0, NOW_US - at) / 1000 * bucket.rate) end
      found[i], found[name] = bucket, bucket
    end
    return found
  end

  local function hold(bucket, amount)
    if bucket.held == 0 then bucket.since, bucket.share, bucket.tail = NOW_US, 0, nil end
    bucket.held = bucket.held + amount
    -- Nothing drains while a script runs, so that all jobs of a call have this in common.
    bucket.tail = bucket.tail or string.format(' %d %.12g', bucket.since, bucket.share)
  end

  -- Take what is needed (by what it is) from all limits, or from none. Returns nothing when it was taken; else how long
  -- until all of it fits (ms; -1: never, it is more than the burst), and the numbers of the limits in the way.
  -- What is `held` (by what it is) is to be settled later.
  local function take_from(subject, limits, needs, held)
    local buckets, wait, violated = buckets_of(subject, limits), 0, nil
    for i, bucket in ipairs(buckets) do
      local need = needs[bucket.what] or 0
      local over = bucket.used + bucket.held + need - bucket.burst
      if need > bucket.burst then
        if wait >= 0 then wait, violated = -1, {} end
        append(violated, i)
      elseif need > 0 and over > bucket.burst * 1e-9 and wait >= 0 then -- what rounding adds up to is not over
        wait = math.max(wait, math.ceil(over / bucket.rate - 1e-6))
        violated = violated or {}
        append(violated, i)
      end
    end
    if violated then return wait, violated end
    buckets.changed = true
    for _, bucket in ipairs(buckets) do
      local need = needs[bucket.what] or 0
      if need > 0 then
        if held[bucket.what] then hold(bucket, need) else bucket.used = bucket.used + need end
      end
    end
  end

  -- What `settle` needs to know later of what was just held: `<name> <taken> <since> <share>` of each bucket.
  local function held_of(subject, needs, held)
    local out = {}
    for _, bucket in ipairs(subjects[subject]) do
      local need = needs[bucket.what] or 0
      if need > 0 and held[bucket.what] then append(out, bucket.name .. ' ' .. need .. bucket.tail) end
    end
    return table.concat(out, ' ')
  end

  -- Correct what was held by what was really used; what `used` does not name was used as taken. Too much was held: it
  -- comes back as far as it has not drained. Too little: the rest is taken now, be there room or not.
  local function settle(subject, limits, held, used)
    local buckets = buckets_of(subject, limits)
    for name, taken, since, share in string.gmatch(held, '(%S+) (%S+) (%S+) (%S+)') do
      local bucket = buckets[name]
      if bucket then
        local left = 0
        if bucket.held > 0 and bucket.since == tonumber(since) then
          left = math.min(bucket.held, taken * math.exp(bucket.share - share))
        end
        bucket.held = bucket.held - left
        bucket.used = bucket.used + math.max(0, left + (used[bucket.what] or taken) - taken)
        buckets.changed = true
      end
    end
  end

  -- How a subject's limits stand: `<what> <window> <amount> <left> <ms until all is there again>` of each, with `;` between.
  local function standing_of(subject, limits)
    local out = {}
    for i, bucket in ipairs(buckets_of(subject, limits)) do
      local level, limit = bucket.used + bucket.held, limits[i]
      local left = math.max(0, bucket.burst - level)
      if bucket.what ~= 'cost' then left = math.floor(left + 1e-6) end
      append(out, string.format('%s %d %.14g %.14g %d', bucket.what, limit[3], limit[2], left, math.ceil(level / bucket.rate)))
    end
    return table.concat(out, ';')
  end

  local function keep_buckets()
    for subject, buckets in pairs(subjects) do
      if buckets.changed then
        local out, longest = {string.format('%d', NOW_US)}, 0
        for _, bucket in ipairs(buckets) do
          append(out, string.format('%s=%.17g,%.17g,%d,%.17g', bucket.name, bucket.used, bucket.held, bucket.since, bucket.share))
          longest = math.max(longest, math.ceil((bucket.used + bucket.held) / bucket.rate))
        end
        if longest > 0 then
          redis.call('SET', P .. 'bucket:' .. subject, table.concat(out, ' '), 'PX', string.format('%d', longest + 1))
        else
          redis.call('DEL', P .. 'bucket:' .. subject)
        end
      end
    end
  end

  return {buckets_of = buckets_of, take_from = take_from, held_of = held_of, settle = settle, standing_of = standing_of,
    keep_buckets = keep_buckets}
end

-- Made when first needed, as owners() is.
local limits_made
local function limits()
  limits_made = limits_made or make_limits()
  return limits_made
end
