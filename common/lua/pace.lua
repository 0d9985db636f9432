-- pace.lua: how long a queue's jobs run, learnt as they end, and how true what was foretold of them came.
-- `meta` of a queue has `runs`, nine numbers: n (how many jobs were learnt from, at most 256), then moving means over
-- those: units u, u*u, run time r (ms), u*r, the logarithm of r over what the line said, its square; then that line,
-- r = a + b*u. And `eta:<class>`, four numbers: how many forecasts were judged, and logarithms: of what the 50 % and the
-- 90 % of the next ones are multiplied by, and of a lift of the latter. A job that comes after its time moves the factor
-- up, one that is in time moves it down, so that the share of jobs in time becomes what it should be, however wrong the
-- model. The lift goes by what was really told: it keeps what a burst did in mind longer than the factors do.
local LEARNT, PER_CALL, COVERED, STEP = 256, 8, 0.91, 0.05
local LIFT, LIFT_STEP, LIFT_MOST = 0.92, 0.05, 1.5
local CAREFUL = {h = '0.1', n = '0.3', l = '0.5'} -- the first lift: much comes before those of the low lane
-- Beside `runs` there is what they cost of late, over about 200 of them: `pace:jobs`, `pace:units` (tokens, seconds of
-- audio) and `pace:gpu` (ms of a worker's time). claiming.lua expects the next ones to cost as much.
local pace, costs
local learnt_now, measured = 0, {jobs = 0, units = 0, gpu = 0}

local function look_at_pace(q)
  if pace then return end
  local kept = redis.call('HMGET', q .. 'meta', 'runs', 'pace:jobs', 'pace:units', 'pace:gpu')
  costs = {jobs = kept[2] or 0, units = kept[3] or 0, gpu = kept[4] or 0}
  pace = {0, 0, 0, 0, 0, 0, 0.25, 0, 0}
  if not kept[1] then return end
  local i = 0
  for n in string.gmatch(kept[1], '%S+') do
    i = i + 1
    pace[i] = tonumber(n)
  end
end

-- A run has used so many units and so much of its worker's time.
local function measure(units, gpu_ms)
  measured.jobs, measured.units, measured.gpu = measured.jobs + 1, measured.units + units, measured.gpu + gpu_ms
end

-- The straight line through run times by units: none falls with them, and none begins below nothing.
local function fit(p)
  local u, uu, r, ur = p[2], p[3], p[4], p[5]
  local spread = uu - u * u
  local b = spread > 0.000001 * uu and math.max(0, (ur - u * r) / spread) or 0
  local a = r - b * u
  if a < 0 then a, b = 0, ur / uu end
  p[8], p[9] = a, b
end

-- A job of so many units ran so long. A few of each call are enough.
local function learn(q, units, ms)
  look_at_pace(q)
  if learnt_now >= PER_CALL then return end
  learnt_now = learnt_now + 1
  local n = math.min(pace[1] + 1, LEARNT)
  local weight = 1 / n
  if n > 1 then
    local off = math.max(-4, math.min(4, math.log(math.max(ms, 1) / math.max(pace[8] + pace[9] * units, 1))))
    pace[6] = pace[6] + weight * (off - pace[6])
    pace[7] = pace[7] + weight * (off * off - pace[7])
  end
  pace[1] = n
  pace[2] = pace[2] + weight * (units - pace[2])
  pace[3] = pace[3] + weight * (units * units - pace[3])
  pace[4] = pace[4] + weight * (ms - pace[4])
  pace[5] = pace[5] + weight * (units * ms - pace[5])
  if n < 8 then fit(pace) end
end

local function keep_pace(q)
  if measured.jobs == 0 then return end
  look_at_pace(q)
  local fades, writes = 0.995 ^ measured.jobs, {}
  for name, by in pairs(measured) do append(writes, 'pace:' .. name, string.format('%.8g', costs[name] * fades + by)) end
  if learnt_now > 0 then
    fit(pace)
    append(writes, 'runs', string.format('%d %.8g %.8g %.8g %.8g %.8g %.8g %.8g %.8g', unpack(pace)))
  end
  redis.call('HSET', q .. 'meta', unpack(writes))
end

-- A job of which `<class> <when, ms> <50 %, ms> <90 %> <the 90 % that was told>` was foretold has ended.
local function judge(q, foretold, at)
  local class, made, half, most, told = string.match(foretold, '^(%w+) (%d+) (%d+) (%d+) (%d+)$')
  if not class then return end
  local took = math.max(1, at - made)
  count(q, 'eta:total', 1)
  local in_time = took <= tonumber(told)
  if in_time then count(q, 'eta:covered', 1) end
  local kept = redis.call('HGET', q .. 'meta', 'eta:' .. class) or '0 0 0 ' .. CAREFUL[string.sub(class, 1, 1)]
  local n, low, high, lift = string.match(kept, '^(%S+) (%S+) (%S+) (%S+)$')
  n = math.min(n + 1, 1000)
  local step = math.max(STEP, 2 / (n + 8))
  -- Held against the factor of now, not that of then: forecasts that were made together must not move it together.
  local above_half, above_most = math.log(took / half) > low + 0, math.log(took / most) > high + 0
  low = low + step * (above_half and 0.5 or -0.5)
  high = high + step * (above_most and COVERED or COVERED - 1)
  lift = math.max(0, math.min(LIFT_MOST, lift + LIFT_STEP * (LIFT - (in_time and 1 or 0))))
  redis.call('HSET', q .. 'meta', 'eta:' .. class, string.format('%d %.6g %.6g %.6g', n, low, high, lift))
end
