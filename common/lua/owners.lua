-- owners.lua: an owner's part of the machines, on the side of the jobs' records. Included by job.lua.
--
-- Within a lane owners take turns by start-time fair queueing: the one with the least tag is served and his tag moves
-- on by the job's cost over his weight. A cost is in milliseconds of a worker's time (`gpu_ms`); at the claim it is a
-- guess, and what was charged stands in the record's `charged` until the run's end corrects it: `<cost>`, then ` b` if
-- the job counts among the owner's running ones, then ` u<units>` if so much of his limits was reserved. None: 1 ms.
-- `<lane>:aside` keeps tags of owners who are not in the line: they have no work there, or are held.
-- An owner is held while he has as many jobs running as he may, or has used up a limit that makes his jobs wait: no
-- claim looks at him. The end of one of his jobs, or the time in `held`, puts him back.
local LEAST_COST = 1 -- ms; also that of a job while nothing is known

local function make_owners()
  local LOOK_AGAIN_MS = 5000 -- at an owner whose jobs' ends were perhaps missed
  local shares, owed, spent, crowds, some_held = {}, {}, {}, {}, nil

  -- What an owner may have; `text` is what `shares` has of him, if it was read already.
  local function share_of(owner, text)
    if shares[owner] then return shares[owner] end
    if text == nil then text = redis.call('HGET', P .. 'shares', owner) end
    shares[owner] = text and {weight = tonumber(string.match(text, '"weight":([%d.]+)')) or 1,
      most = tonumber(string.match(text, '"in_progress":(%d+)')),
      limits = string.match(text, '"limits":(.*)')} or {weight = 1}
    return shares[owner]
  end

  -- The limits that a queue's jobs fall under: {name, burst, ms until a used unit is free again}.
  local function limits_of(share, q)
    if share.rows_of == q then return share.rows end
    local out = {}
    share.rows_of, share.rows = q, out
    if not share.limits then return out end
    local wanted = string.find(q, '}:q:transcription:', 1, true) and 'audio_seconds' or 'tokens'
    for what, most, window, burst in string.gmatch(share.limits, '%["([%a_]+)",([^,]+),(%d+),([^,%]]+)%]') do
      if what == wanted then
        append(out, {name = what .. ':' .. window, burst = tonumber(burst), per_unit = window / most})
      end
    end
    return out
  end

  -- When an owner's limit will be all free again; read once a call, and written at its end.
  local function free_at(owner, limit)
    local key = P .. 'spent:' .. owner .. ':' .. limit.name
    spent[key] = spent[key] or {at = tonumber(redis.call('GET', key) or 0)}
    return spent[key]
  end

  -- Jobs that began or ended in this call, of an owner who may have only so many running: noted, and written together.
  local function crowd_of(owner)
    crowds[owner] = crowds[owner] or {key = P .. 'running:' .. owner, joined = {}, left = {}}
    return crowds[owner]
  end

  local function keep_crowd(crowd)
    if #crowd.left > 0 then redis.call('SREM', crowd.key, unpack(crowd.left)) end
    if #crowd.joined > 0 then redis.call('SADD', crowd.key, unpack(crowd.joined)) end
    crowd.joined, crowd.left = {}, {}
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

  local function charge_of(text)
    local cost, bound, units = string.match(text, '^(%S+)( ?b?) ?u?(%d*)$')
    return tonumber(cost), bound == ' b', tonumber(units)
  end

  -- A job is claimed no longer: its owner's tag and counts are put right. `used`: units, or nil to keep what was reserved.
  local function put_right(q, id, owner, charged, cost, used)
    local paid, bound, units = tonumber(charged), false, nil
    if not paid then paid, bound, units = charge_of(charged) end
    if cost ~= paid then
      owed[q] = owed[q] or {}
      owed[q][owner] = (owed[q][owner] or 0) + cost - paid
    end
    if not (bound or units) then return end
    if bound then append(crowd_of(owner).left, short_of(id)) end
    if units and used then
      for _, limit in ipairs(limits_of(share_of(owner), q)) do
        local kept = free_at(owner, limit)
        if kept.at > 0 and used ~= units then kept.at, kept.new = kept.at + (used - units) * limit.per_unit, true end
      end
    end
    if some_held == nil then some_held = redis.call('EXISTS', P .. 'held') == 1 end
    if some_held and redis.call('ZSCORE', P .. 'held', owner) then unhold(owner) end
  end

  -- Move the tags of those who were charged too much or too little; keep whose jobs run, and what limits have left.
  local function settle_tags()
    for q, owners in pairs(owed) do
      local lanes = {}
      for _, lane in ipairs(LANES) do
        if redis.call('EXISTS', q .. lane .. ':users', q .. lane .. ':aside') > 0 then append(lanes, lane) end
      end
      for owner, by in pairs(owners) do
        for _, lane in ipairs(lanes) do move_tag(q, lane, owner, by / share_of(owner).weight) end
      end
      owed[q] = nil
    end
    for _, crowd in pairs(crowds) do keep_crowd(crowd) end
    for key, kept in pairs(spent) do
      if kept.new then redis.call('SET', key, kept.at, 'PX', math.max(0, math.ceil(kept.at - NOW)) + 60000) end
      kept.new = nil
    end
  end

  -- What bounds an owner, and how much of it is taken now. `reached` tells whether he may not have another job running:
  -- then he leaves the line, until `held_until` or the end of one of his jobs.
  local function bounds_of(owner, q)
    local share = share_of(owner.name)
    if not (share.most or share.limits) then return nil end
    local limits, crowd, n = limits_of(share, q), nil, nil
    if not share.most and #limits == 0 then return nil end
    if share.most then
      crowd = crowd_of(owner.name)
      keep_crowd(crowd)
      n = redis.call('SCARD', crowd.key)
    end
    for _, limit in ipairs(limits) do limit.kept = free_at(owner.name, limit) end

    -- A job that is larger than a whole limit is run when nothing of it is used.
    local function reached(ticket)
      if n and n >= share.most then
        owner.held_until = NOW + LOOK_AGAIN_MS
        return true
      end
      local units = tonumber(string.match(ticket, '^%d+ %d+ %d+ %d+ %d+ %l(%d+)') or 0)
      for _, limit in ipairs(limits) do
        local ready_at = math.max(NOW, limit.kept.at) + math.min(0, units - limit.burst) * limit.per_unit
        if ready_at > NOW then owner.held_until = math.max(owner.held_until or 0, math.ceil(ready_at)) end
      end
      return owner.held_until ~= nil
    end

    local function reserve(id, units)
      if n then
        n = n + 1
        append(crowd.joined, short_of(id))
      end
      for _, limit in ipairs(limits) do
        limit.kept.at, limit.kept.new = math.max(NOW, limit.kept.at) + units * limit.per_unit, true
      end
      return (n and ' b' or '') .. (#limits > 0 and ' u' .. string.format('%d', units) or '')
    end

    return {reached = reached, reserve = reserve}
  end

  return {LOOK_AGAIN_MS = LOOK_AGAIN_MS, share_of = share_of, bounds_of = bounds_of, line_up = line_up,
    forget_tags = forget_tags, step_aside = step_aside, move_tag = move_tag, unhold = unhold, charge_of = charge_of,
    put_right = put_right, settle_tags = settle_tags}
end

-- Made when first needed: most calls need nothing of it, and to make it costs as much as ten looks at Redis.
local made
local function owners()
  made = made or make_owners()
  return made
end
