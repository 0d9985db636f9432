-- owners.lua: an owner's part of the machines, on the side of the jobs' records. Included by job.lua.
--
-- Within a lane owners take turns by start-time fair queueing: the one with the least tag is served and his tag moves
-- on by the job's cost over his weight. A cost is in milliseconds of a worker's time (`gpu_ms`); at the claim it is a
-- guess, which the run's end corrects. What was charged stands in the record's `charged`: `<cost>`, then ` b` if the job
-- counts among the owner's running ones, then ` u<units>` if so much of his limits was reserved. Without it: the least
-- cost, and what the owner's share asks for. (Of short jobs a field more is what their order may cost. share.lua writes
-- it for those that run when a share changes.)
-- `<lane>:aside` keeps tags of owners who are not in the line: they have no work there, or are held.
-- An owner is held while he has as many jobs running as he may, or has used up a limit that makes his jobs wait: no
-- claim looks at him. The end of one of his jobs, or the time in `held`, puts him back.
-- Of all owners of a call together, shares and what they have of them are read once and written once: a command for each
-- of a hundred owners would cost more than their jobs do.
local LEAST_COST = 1 -- ms; also that of a job while nothing is known
local TICKS = 1000 -- of a tag in a ms at weight 1. Tags are whole: to read and write them costs Redis a third of others

-- How far a job's cost moves its owner's tag on.
local function step_of(cost, weight) return math.max(1, math.floor(cost / weight * TICKS + 0.5)) end

local function make_owners()
  local LOOK_AGAIN_MS = 5000 -- at an owner whose jobs' ends were perhaps missed
  local NOW_US = NOW * 1000
  local known, owed, ended = {}, {}, {}

  -- What a text in `shares` allows beside its weight, which comes first: {most jobs running, limits that make jobs wait,
  -- and which of those by what they count}. Owners of one tier have the same.
  local NONE, terms_in = {}, {}
  local function terms_of(text)
    local terms = {most = tonumber(string.match(text, '^"in_progress":(%d+)')), limits = {}, of = {}}
    for what, most, window, burst in string.gmatch(text, '%["([%a_]+)",([^,]+),(%d+),([^,%]]+)%]') do
      append(terms.limits, {field = what .. ':' .. window .. ' ', burst = tonumber(burst), per_unit = 1000 * window / most})
      terms.of[what] = terms.of[what] or {}
      append(terms.of[what], #terms.limits)
    end
    terms_in[text] = terms
    return terms
  end

  -- What an owner may have, and has: how many jobs run and when each limit will be all free again (microseconds), once
  -- that was looked at.
  local function share_in(name, text)
    local weight, rest = string.match(text, '^{"weight":([^,}]+),?(.*)$')
    rest = rest or string.sub(text, 2)
    return {name = name, weight = weight and tonumber(weight) or 1, terms = terms_in[rest] or terms_of(rest), at = false,
      running = false, changed = false, spent = false}
  end

  -- What owners may have, read once a call.
  local function read_shares(names)
    local unknown, n = {}, 0
    for i = 1, #names do
      if not known[names[i]] then
        n = n + 1
        unknown[n] = names[i]
      end
    end
    if n == 0 then return end
    local texts = redis.call('HMGET', P .. 'shares', unpack(unknown))
    for i = 1, n do known[unknown[i]] = share_in(unknown[i], texts[i] or '') end
  end

  local function share_of(owner)
    if not known[owner] then read_shares({owner}) end
    return known[owner]
  end

  local function standing_of(fields, n)
    if n <= 4000 then return redis.call('HMGET', P .. 'standing', unpack(fields)) end
    local found = {}
    for first = 1, n, 4000 do -- Lua cannot unpack more than about 8,000 values
      for _, has in ipairs(redis.call('HMGET', P .. 'standing', unpack(fields, first, math.min(first + 3999, n)))) do
        found[#found + 1] = has
      end
    end
    return found
  end

  -- What owners may have, and have of it now.
  local function look_at(names)
    read_shares(names)
    local shares, fresh, fields, n = {}, {}, {}, 0
    for i = 1, #names do
      local share = known[names[i]]
      shares[i] = share
      if not share.at then
        share.at, fresh[#fresh + 1] = {}, share
        local terms, name = share.terms, names[i]
        if terms.most then
          n = n + 1
          fields[n] = 'running ' .. name
        end
        for k = 1, #terms.limits do fields[n + k] = terms.limits[k].field .. name end
        n = n + #terms.limits
      end
    end
    if n == 0 then return shares end
    local found, i = standing_of(fields, n), 0
    for _, share in ipairs(fresh) do
      if share.terms.most then
        i = i + 1
        share.running = tonumber(found[i] or 0)
      end
      for k = 1, #share.terms.limits do share.at[k] = tonumber(found[i + k] or 0) end
      i = i + #share.terms.limits
    end
    return shares
  end

  -- Those of an owner's limits that a queue's jobs fall under: their numbers.
  local counted_in = {}
  local function limits_of(share, q)
    local unit = counted_in[q]
    if not unit then
      unit = string.find(q, '}:q:transcription:', 1, true) and 'audio_seconds' or 'tokens'
      counted_in[q] = unit
    end
    return share.terms.of[unit] or NONE
  end

  -- Give owners who have work a place: where they stood, but not before the lane's clock.
  local function line_up(q, lane, owners)
    local start = tonumber(redis.call('HGET', q .. 'meta', 'clock:' .. lane) or 0)
    local some_aside = redis.call('EXISTS', q .. lane .. ':aside') == 1
    local some_held = redis.call('EXISTS', P .. 'held') == 1
    local places = {}
    for owner in pairs(owners) do
      if some_held and redis.call('ZSCORE', P .. 'held', owner) then
        redis.call('SADD', P .. 'held:' .. owner, lane .. ' ' .. string.sub(q, #P + 3, -2))
      else
        local tag = some_aside and redis.call('ZSCORE', q .. lane .. ':aside', owner)
        if tag then redis.call('ZREM', q .. lane .. ':aside', owner) end
        append(places, string.format('%d', math.max(start, tonumber(tag or 0))), owner)
      end
    end
    if #places > 0 then redis.call('ZADD', q .. lane .. ':users', 'NX', unpack(places)) end
  end

  -- Where nobody waits, nobody has had more than his part: the next ones begin alike, and nothing is left behind.
  local function forget_tags(q, lane)
    if redis.call('EXISTS', q .. lane .. ':users', P .. 'held') == 0 then redis.call('DEL', q .. lane .. ':aside') end
  end

  -- Take an owner out of the line; a tag that is ahead of the clock is kept until the clock has passed it.
  local function step_aside(q, lane, owner)
    local tag = tonumber(redis.call('ZSCORE', q .. lane .. ':users', owner) or 0)
    redis.call('ZREM', q .. lane .. ':users', owner)
    if tag > tonumber(redis.call('HGET', q .. 'meta', 'clock:' .. lane) or 0) then
      redis.call('ZADD', q .. lane .. ':aside', tag, owner)
    end
    forget_tags(q, lane)
  end

  local function move_tag(q, lane, owner, by)
    if not redis.call('ZADD', q .. lane .. ':users', 'XX', 'INCR', by, owner) then
      redis.call('ZADD', q .. lane .. ':aside', 'XX', 'INCR', by, owner)
    end
  end

  local function unhold(owner)
    redis.call('ZREM', P .. 'held', owner)
    for _, place in ipairs(redis.call('SMEMBERS', P .. 'held:' .. owner)) do
      local lane, queue = string.match(place, '^(%l+) (.*)$')
      local q = at(queue)
      if redis.call('EXISTS', stream_of(q, lane, owner)) == 1 then
        line_up(q, lane, {[owner] = true})
        ring(q)
      end
    end
    redis.call('DEL', P .. 'held:' .. owner)
  end

  -- Many jobs of a call were charged alike.
  local charges = {}
  local function charge_of(text)
    local found = charges[text]
    if not found then
      local cost, bound, units = string.match(text, '^(%S+)( ?b?) ?u?(%d*)$')
      found = {cost = tonumber(cost), bound = bound == ' b', units = tonumber(units)}
      charges[text] = found
    end
    return found
  end

  -- What stands in `charged` of a queue's job that costs so much and has so many units; by what its owner's share asks.
  local function charged_as(share, q, cost, units)
    local reserved = limits_of(share, q)[1] and ' u' .. string.format('%d', units) or ''
    return cost .. (share.terms.most and ' b' or '') .. reserved
  end

  -- Jobs are claimed no longer: their owner's tag and counts are put right at the end of what the call does now (`settle`).
  -- `run`: {owner, n: how many jobs, units: of their ticket, charged: of their records, or false, cost: what each was,
  -- used: units, of all together, or nil to keep what was reserved}.
  local function put_right(q, run)
    run.q = q
    append(ended, run)
  end

  -- Give back what ended jobs had of their owner's bounds: whether he had any.
  local function give_back_bounds(share, run)
    local charge = run.charged and charge_of(run.charged)
    local bound, units = share.terms.most, run.units
    if charge then bound, units = charge.bound, charge.units end
    if bound then
      share.running = share.running or tonumber(redis.call('HGET', P .. 'standing', 'running ' .. share.name) or 0)
      share.running, share.changed = math.max(0, share.running - run.n), true
    end
    local limits = limits_of(share, run.q)
    if not units or not limits[1] then return bound end
    local by = run.used and run.used - run.n * units or 0
    for _, i in ipairs(by ~= 0 and limits or NONE) do
      if share.at[i] > 0 then share.at[i], share.spent = share.at[i] + by * share.terms.limits[i].per_unit, true end
    end
    return true
  end

  local function owe(q, owner, by)
    owed[q] = owed[q] or {}
    owed[q][owner] = (owed[q][owner] or 0) + by
  end

  -- An owner who was held may have room again.
  local function settle_bounds()
    local names, runs, bounded = {}, ended, {}
    ended = {}
    for i, run in ipairs(runs) do names[i] = run.owner end
    look_at(names)
    for _, run in ipairs(runs) do
      local share = known[run.owner]
      local paid = run.charged and charge_of(run.charged).cost or LEAST_COST
      if run.cost ~= paid then owe(run.q, run.owner, run.n * (run.cost - paid) / share.weight) end
      if give_back_bounds(share, run) then append(bounded, run.owner) end
    end
    if #bounded == 0 then return end
    for i, held in ipairs(redis.call('ZMSCORE', P .. 'held', unpack(bounded))) do
      if held then unhold(bounded[i]) end
    end
  end

  -- Settle bounds, and move the tags of those who were charged too much or too little.
  local function settle()
    if ended[1] then settle_bounds() end
    for q, owners in pairs(owed) do
      for _, lane in ipairs(LANES) do
        if redis.call('EXISTS', q .. lane .. ':users', q .. lane .. ':aside') > 0 then
          for owner, by in pairs(owners) do move_tag(q, lane, owner, math.floor(by * TICKS + 0.5)) end
        end
      end
      owed[q] = nil
    end
  end

  -- Write what owners have now of their bounds. What says nothing any more is left to trim.lua.
  local function keep()
    local some, n = {}, 0
    for name, share in pairs(known) do
      if share.changed then
        some[n + 1], some[n + 2] = 'running ' .. name, string.format('%d', share.running)
        n = n + 2
      end
      if share.spent then
        for i, limit in ipairs(share.terms.limits) do
          some[n + 1], some[n + 2] = limit.field .. name, string.format('%d', math.ceil(share.at[i]))
          n = n + 2
        end
      end
    end
    for first = 1, n, 4000 do redis.call('HSET', P .. 'standing', unpack(some, first, math.min(first + 3999, n))) end
  end

  -- How many jobs more, of so many units each, an owner (of claiming.lua) may have now. If none, he leaves the line until
  -- `held_until` or the end of one of his jobs. One that is larger than a whole limit is run when nothing of that is used.
  local function room_for(owner, units)
    local share, room = owner.share, math.huge
    if share.terms.most then
      room = share.terms.most - share.running
      if room < 1 then
        owner.held_until = NOW + LOOK_AGAIN_MS
        return 0
      end
    end
    for _, i in ipairs(owner.limits) do
      local limit = share.terms.limits[i]
      local ready_at = math.max(NOW_US, share.at[i]) - math.max(0, limit.burst - units) * limit.per_unit
      if ready_at > NOW_US + 100 then -- what rounding adds up to is not over
        owner.held_until, room = math.max(owner.held_until or 0, math.ceil(ready_at / 1000)), 0
      elseif units > 0 then
        room = math.min(room, math.floor((NOW_US - ready_at) / (units * limit.per_unit) + 0.001) + 1)
      end
    end
    return room
  end

  -- Take of an owner's bounds what the jobs that he `took` need.
  local function take_room(owner)
    local share, took = owner.share, owner.took
    if took == 0 then return end
    if share.terms.most then share.running, share.changed = share.running + took, true end
    for _, i in ipairs(owner.limits) do
      share.at[i], share.spent = math.max(NOW_US, share.at[i]) + took * owner.units * share.terms.limits[i].per_unit, true
    end
    owner.took = 0
  end

  return {LOOK_AGAIN_MS = LOOK_AGAIN_MS, share_of = share_of, look_at = look_at, limits_of = limits_of, line_up = line_up,
    forget_tags = forget_tags, step_aside = step_aside, move_tag = move_tag, unhold = unhold, charge_of = charge_of,
    charged_as = charged_as, put_right = put_right, settle = settle, keep = keep, room_for = room_for,
    take_room = take_room}
end

-- Made when first needed: most calls need nothing of it, and to make it costs as much as ten looks at Redis.
local made
local function owners()
  made = made or make_owners()
  return made
end
