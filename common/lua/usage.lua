-- usage.lua: what ended jobs have used, by key, model and day, and what that gives back of their keys' limits.
-- Included by job.lua. `P usage:<days since 1970>` has a field for each sum: `<what> <key or -> <model> <owner>`.
-- Without keys owners are who callers say they are, and may be any number: a day has MOST_FIELDS sums of such, and past
-- that those who are new are `*` together.
local MOST_FIELDS = 5000
local whose, policies, key_that_waits = {}, {}, nil

local function use(who, what, by) who.sums[what] = (who.sums[what] or 0) + by end

-- A key's limits at the door, or false.
local function door_of(api_key)
  if policies[api_key] == nil then
    local text = api_key ~= '' and redis.call('HGET', P .. 'limits', api_key)
    policies[api_key] = text and cjson.decode(text) or false
  end
  return policies[api_key]
end

-- Jobs that wait, of keys that may have only so many: `P waits:<key>` is the set of their ids. A set cannot drift like
-- a number: what is put in or taken out twice changes nothing. Both are done once a call; whatever leaves in a call that
-- it came in leaves for good.
local waits, waits_no_more = {}, {}

local function gather(lists, api_key, id)
  lists[api_key] = lists[api_key] or {}
  append(lists[api_key], id)
end

local function wait_on(id, api_key)
  local door = door_of(api_key)
  if door and door.waiting then
    gather(waits, api_key, id)
    key_that_waits = true
  end
end

local function wait_no_more(id, api_key)
  if api_key == '' then return end
  if key_that_waits == nil then key_that_waits = redis.call('EXISTS', P .. 'waits') == 1 end
  if key_that_waits then gather(waits_no_more, api_key, id) end
end

local function keep_waits(command, lists)
  for api_key, ids in pairs(lists) do
    for first = 1, #ids, 2000 do
      redis.call(command, P .. 'waits:' .. api_key, unpack(ids, first, math.min(first + 1999, #ids)))
    end
  end
end

-- Whose a job is, with the sums of this call: of its ticket as it was read, and of the model that was asked for when
-- that is not the queue's. Jobs of one call are mostly of few.
local function who_of(ticket, model)
  if ticket.who and not model then return ticket.who end
  local key = ticket.api_key == '' and '-' or ticket.api_key
  local name = ' ' .. key .. ' ' .. (model or string.match(ticket.queue, ':(.+)')) .. ' ' .. ticket.user
  local who = whose[name] or {api_key = ticket.api_key, name = name, sums = {}}
  whose[name] = who
  if not model then ticket.who = who end
  return who
end

-- What a job's usage (JSON) says, by what limits are in.
local function used_of(who, usage)
  local told = {}
  for name, n in string.gmatch(usage, '"(%l[%l_]+)":(%d+)') do told[name] = tonumber(n) end
  local prompt, completion, seconds = told.prompt_tokens, told.completion_tokens, told.audio_seconds
  if prompt then use(who, 'prompt_tokens', prompt) end
  if completion then use(who, 'completion_tokens', completion) end
  if seconds then use(who, 'audio_seconds', seconds) end
  local tokens = (prompt or completion) and (prompt or 0) + (completion or 0) or nil
  local cost = (tokens or seconds) and 0 or nil -- what has no price costs nothing
  if told.cost_micros then
    use(who, 'cost:' .. string.match(usage, '"cost_currency":"(%u+)"'), told.cost_micros)
    cost = told.cost_micros / 1000000
  end
  return {tokens = tokens, audio_seconds = seconds, cost = cost}
end

-- Count a job that has just ended, once: with its end, in the same script. `usage` is '' when it has no result; the
-- ticket as it was read; model and held are the record's.
local function account(id, code, history, usage, ticket, model, held)
  local who = who_of(ticket, model)
  use(who, STATES[code], 1)
  local used = usage ~= '' and used_of(who, usage)
  local door = held and door_of(who.api_key)
  if not door then return end
  -- Of a run that was stopped, or broke off in the middle of its answer, nobody knows what it took: then all that was
  -- held for it counts, or stopping a stream just before its end would cost nothing.
  if not used and code_of(history) == 'p' and (code ~= 'f' or redis.call('EXISTS', P .. 'tokens:' .. id) == 1) then
    used = {}
  end
  limits().settle('k:' .. who.api_key, door.limits or {}, held, used or {tokens = 0, audio_seconds = 0, cost = 0})
end

local function keep_usage()
  if next(waits) then redis.call('SET', P .. 'waits', 1) end
  keep_waits('SADD', waits)
  keep_waits('SREM', waits_no_more)
  if not next(whose) then return end
  local key, sums = P .. 'usage:' .. string.format('%d', math.floor(NOW / 86400000)), {}
  local full = redis.call('HLEN', key) >= MOST_FIELDS
  for _, who in pairs(whose) do
    for what, by in pairs(who.sums) do
      local field = what .. who.name
      if full and who.api_key == '' and redis.call('HEXISTS', key, field) == 0 then
        field = what .. string.gsub(who.name, '%S+$', '*')
      end
      sums[field] = (sums[field] or 0) + by
    end
  end
  if not add_up(key, sums) then return end
  redis.call('PEXPIRE', key, redis.call('HGET', P .. 'ordinary', 'usage_ms') or 34560000000, 'NX')
end
