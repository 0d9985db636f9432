-- order.lua: the order in which the jobs of a small queue will start, by going through it as claims of one job do.
-- Included by position.lua. Bounds on owners are not looked at, nor is who will come.
local SMALL = 128 -- waiting jobs; more would keep Redis busy for longer than a claim does

-- What a job costs its owner, as claiming.lua guesses it.
local function guess_of(meta)
  local per_job = (meta['pace:gpu'] or 0) / math.max(1, meta['pace:jobs'] or 0)
  local per_unit = tonumber(meta['pace:units'] or 0) > 0 and meta['pace:gpu'] / meta['pace:units'] or 0
  return function(units)
    return math.max(LEAST_COST, per_job > 0 and (units > 0 and per_unit > 0 and units * per_unit or per_job) or 0)
  end
end

local function line_of(lane)
  local users, found = {}, redis.call('ZRANGE', q .. lane .. ':users', 0, SMALL - 1, 'WITHSCORES')
  for i = 1, #found, 2 do
    append(users, {name = found[i], tag = tonumber(found[i + 1]), at = 1, ids = ids_of(stream_of(q, lane, found[i]), SMALL)})
  end
  return {returned = redis.call('LRANGE', q .. lane .. ':returned', 0, SMALL - 1), at = 1, users = users}
end

local function has_more(line) return line.at <= #line.returned or #line.users > 0 end

-- The user whose turn it is; of those with one tag the name decides, as in a sorted set.
local function first_of(line)
  local best
  for i, user in ipairs(line.users) do
    local before = best and line.users[best]
    if not best or user.tag < before.tag or user.tag == before.tag and user.name < before.name then best = i end
  end
  return line.users[best], best
end

-- The next job of a lane; its owner pays, here and in the other lanes that have work.
local function next_of(lane, lines, working, cost_of)
  local line = lines[lane]
  if line.at <= #line.returned then
    line.at = line.at + 1
    return line.returned[line.at - 1], nil, 0
  end
  local user, place = first_of(line)
  local id = user.ids[user.at]
  local units = units_of(id)
  local before = user.tag
  user.at, user.tag = user.at + 1, before + step_of(cost_of(units), owners().share_of(user.name).weight)
  for _, other in ipairs(#working > 1 and working or {}) do
    for _, same in ipairs(other ~= lane and lines[other].users or {}) do
      if same.name == user.name then same.tag = same.tag + (user.tag - before) end
    end
  end
  if user.at > #user.ids then table.remove(line.users, place) end
  return id, user.name, units
end

-- Which lane's turn it is: smooth weighted round robin, as in a claim.
local function turn_of(working, credit, contended)
  if #working == 1 then return working[1] end
  local best, total, weights = nil, 0, lane_weights(contended)
  for _, lane in ipairs(working) do
    total = total + weights[lane]
    credit[lane] = credit[lane] + weights[lane]
    if not best or credit[lane] > credit[best] then best = lane end
  end
  credit[best] = credit[best] - total
  return best
end

-- Jobs that start before one: by lane, its user's own among those of its lane, and what those of its lane need.
-- Nil when it is not met: its owner is held, or the queue is not small.
local function order_until(id, lane, me, meta)
  local lines, credit, contended = {}, {}, tonumber(meta.contended or 0)
  local got, own, need, cost_of = {high = 0, normal = 0, low = 0}, 0, 0, guess_of(meta)
  for _, other in ipairs(LANES) do
    lines[other], credit[other] = line_of(other), tonumber(meta['credit:' .. other] or 0)
  end
  for _ = 0, 2 * SMALL do
    local working = {}
    for _, other in ipairs(LANES) do
      if has_more(lines[other]) then append(working, other) else credit[other] = 0 end
    end
    if #working == 0 then return nil end
    local turn = turn_of(working, credit, contended)
    contended = #working > 1 and contended + 1 or 0
    local job, user, units = next_of(turn, lines, working, cost_of)
    if job == id then return got, own, need end
    got[turn] = got[turn] + 1
    if turn == lane then
      need = need + units
      if user == me then own = own + 1 end
    end
  end
end
