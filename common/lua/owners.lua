-- owners.lua: an owner's part of the machines, on the side of the jobs' records. Included by job.lua.
--
-- Within a lane owners take turns by start-time fair queueing: the one with the least tag is served and his tag moves
-- on by the job's cost over his weight. A cost is in milliseconds of a worker's time (`gpu_ms`); at the claim it is a
-- guess, and what was charged stands in the record's `charged` until the run's end corrects it: `<cost>`, then ` b` if
-- the job counts among the owner's running ones, then ` u<units>` if so much of his limits was reserved. None: 1 ms.
-- `<lane>:aside` keeps tags of owners who are not in the line: they have no work there, or are held.
-- An owner is held while he has as many jobs running as he may, or has used up a limit that makes his jobs wait: no
-- claim looks at him. The end of one of his jobs, or the time in `held`, puts him back.
-- Of all owners of a call together, shares and what they have of them are read once and written once: a command for each
-- of a hundred owners would cost more than their jobs do.
local LEAST_COST = 1 -- ms; also that of a job while nothing is known

local function make_owners()
  local LOOK_AGAIN_MS = 5000 -- at an owner whose jobs' ends were perhaps missed
  local SPENT_KEPT_MS = 86400000 -- past its time: what a running job uses beyond its guess still counts from there
  local known, running, changed, owed, ended = {}, {}, {}, {}, {}

  -- What a text in `shares` allows: {weight, most jobs running, limits that make jobs wait by what they count}. Owners of
  -- one tier have the same.
  local NONE, limits_in = {}, {}
  local function terms_of(text)
    local limits = string.match(text, '"limits":(.*)')
    local rows = limits and (limits_in[limits] or {}) or NONE
    if limits and not limits_in[limits] then
      limits_in[limits] = rows
      for what, most, window, burst in string.gmatch(limits, '%["([%a_]+)",([^,]+),(%d+),([^,%]]+)%]') do
        rows[what] = rows[what] or {}
        append(rows[what], {name = what .. ':' .. window, burst = tonumber(burst), per_unit = window / most})
      end
    end
    return {weight = tonumber(string.match(text, '"weight":([%d.]+)')) or 1,
      most = tonumber(string.match(text, '"in_progress":(%d+)')), rows = rows, at = {}}
  end

  -- What owners may have, read once a call. `at` has when a limit will be all free again, by its name, once that was
  -- looked at.
  local function read_shares(names)
    local unknown = {}
    for _, name in ipairs(names) do
      if not known[name] then append(unknown, name) end
    end
    if #unknown == 0 then return end
    for i, text in ipairs(redis.call('HMGET', P .. 'shares', unpack(unknown))) do
      known[unknown[i]] = text and terms_of(text) or {weight = 1, rows = NONE}
    end
  end

  local function share_of(owner)
    if not known[owner] then read_shares({owner}) end
    return known[owner]
  end

  local function read_running(names)
    if #names == 0 then return end
    for i, n in ipairs(redis.call('HMGET', P .. 'running', unpack(names))) do running[names[i]] = tonumber(n or 0) end
  end

  -- What owners may have, and have of it now.
  local function look_at(names)
    read_shares(names)
    local uncounted, limited, limits, fields = {}, {}, {}, {}
    for _, name in ipairs(names) do
      local share = known[name]
      if share.most and not running[name] then append(uncounted, name) end
      for _, rows in pairs(share.rows) do
        for _, limit in ipairs(share.at[rows[1].name] and NONE or rows) do
          append(limited, share)
          append(limits, limit.name)
          append(fields, name .. ' ' .. limit.name)
        end
      end
    end
    read_running(uncounted)
    if #fields > 0 then
      for i, at in ipairs(redis.call('ZMSCORE', P .. 'spent', unpack(fields))) do limited[i].at[limits[i]] = tonumber(at or 0) end
    end
  end

  -- Those of an owner's limits that a queue's jobs fall under.
  local counted_in = {}
  local function limits_of(share, q)
    if share.rows == NONE then return NONE end
    local unit = counted_in[q]
    if not unit then
      unit = string.find(q, '}:q:transcription:', 1, true) and 'audio_seconds' or 'tokens'
      counted_in[q] = unit
    end
    return share.rows[unit] or NONE
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
        append(places, math.max(start, tonumber(tag or 0)), owner)
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

  -- `n` jobs, all alike, are claimed no longer: their owner's tag and counts are put right at the end of what the call does
  -- now (`settle`). `charged` is nil where nothing stands in their record; `used`: units of each, or nil to keep what was
  -- reserved.
  local function put_right(q, owner, charged, cost, used, n)
    local charge = charge_of(charged or '1')
    if cost ~= charge.cost then
      owed[q] = owed[q] or {}
      owed[q][owner] = (owed[q][owner] or 0) + n * (cost - charge.cost)
    end
    if not (charge.bound or charge.units) then return end
    local mine = ended[owner] or {bound = 0, units = {}}
    ended[owner] = mine
    if charge.bound then mine.bound = mine.bound + n end
    if charge.units and used and used ~= charge.units then
      mine.units[q] = (mine.units[q] or 0) + n * (used - charge.units)
    end
  end

  local function names_in(lists)
    local names = {}
    for name in pairs(lists) do append(names, name) end
    return names
  end

  -- Give back what ended jobs had of their owners' bounds; an owner who was held may have room again.
  local function settle_bounds()
    local names, uncounted, limited = names_in(ended), {}, {}
    for _, name in ipairs(names) do
      if ended[name].bound > 0 and not running[name] then append(uncounted, name) end
      if next(ended[name].units) then append(limited, name) end
    end
    read_running(uncounted)
    if #limited > 0 then look_at(limited) end
    for _, name in ipairs(names) do
      local share, mine = known[name], ended[name]
      if mine.bound > 0 then running[name], changed[name] = math.max(0, running[name] - mine.bound), true end
      for q, units in pairs(mine.units) do
        for _, limit in ipairs(limits_of(share, q)) do
          local at = share.at[limit.name]
          if at > 0 then share.at[limit.name], share.spent = at + units * limit.per_unit, true end
        end
      end
    end
    ended = {}
    for i, held in ipairs(redis.call('ZMSCORE', P .. 'held', unpack(names))) do
      if held then unhold(names[i]) end
    end
  end

  -- Move the tags of those who were charged too much or too little, and settle bounds.
  local function settle()
    for q, owners in pairs(owed) do
      read_shares(names_in(owners))
      local lanes = {}
      for _, lane in ipairs(LANES) do
        if redis.call('EXISTS', q .. lane .. ':users', q .. lane .. ':aside') > 0 then append(lanes, lane) end
      end
      for owner, by in pairs(owners) do
        for _, lane in ipairs(lanes) do move_tag(q, lane, owner, by / known[owner].weight) end
      end
      owed[q] = nil
    end
    if next(ended) then settle_bounds() end
  end

  -- Write what owners have now of their bounds. A limit that has been all free for long leaves nothing behind.
  local function keep()
    local some, none, spent = {}, {}, {}
    for name in pairs(changed) do
      if running[name] > 0 then append(some, name, string.format('%d', running[name])) else append(none, name) end
    end
    for name, share in pairs(known) do
      for limit, at in pairs(share.spent and share.at or NONE) do append(spent, at, name .. ' ' .. limit) end
    end
    if #some > 0 then redis.call('HSET', P .. 'running', unpack(some)) end
    if #none > 0 then redis.call('HDEL', P .. 'running', unpack(none)) end
    if #spent > 0 then
      redis.call('ZADD', P .. 'spent', unpack(spent))
      redis.call('ZREMRANGEBYSCORE', P .. 'spent', '-inf', NOW - SPENT_KEPT_MS)
    end
  end

  -- How many jobs more, of so many units each, an owner (of claiming.lua) may have now. If none, he leaves the line until
  -- `held_until` or the end of one of his jobs. One that is larger than a whole limit is run when nothing of that is used.
  local function room_for(owner, units)
    local share, room = owner.share, math.huge
    if share.most then
      room = share.most - running[owner.name]
      if room < 1 then
        owner.held_until = NOW + LOOK_AGAIN_MS
        return 0
      end
    end
    for _, limit in ipairs(owner.limits) do
      local ready_at = math.max(NOW, share.at[limit.name]) - math.max(0, limit.burst - units) * limit.per_unit
      if ready_at > NOW + 0.001 then -- what rounding adds up to is not over
        owner.held_until, room = math.max(owner.held_until or 0, math.ceil(ready_at)), 0
      elseif units > 0 then
        room = math.min(room, math.floor((NOW - ready_at) / (units * limit.per_unit) + 0.001) + 1)
      end
    end
    return room
  end

  -- Take of an owner's bounds what the jobs that he `took` need.
  local function take_room(owner)
    local share, took = owner.share, owner.took
    if took == 0 then return end
    if share.most then running[owner.name], changed[owner.name] = running[owner.name] + took, true end
    for _, limit in ipairs(owner.limits) do
      share.at[limit.name], share.spent = math.max(NOW, share.at[limit.name]) + took * owner.units * limit.per_unit, true
    end
    owner.took = 0
  end

  return {LOOK_AGAIN_MS = LOOK_AGAIN_MS, share_of = share_of, look_at = look_at, limits_of = limits_of, line_up = line_up,
    forget_tags = forget_tags, step_aside = step_aside, move_tag = move_tag, unhold = unhold, charge_of = charge_of,
    put_right = put_right, settle = settle, keep = keep, room_for = room_for, take_room = take_room}
end

-- Made when first needed: most calls need nothing of it, and to make it costs as much as ten looks at Redis.
local made
local function owners()
  made = made or make_owners()
  return made
end
