-- usage.lua: what ended jobs have used, by key, model and day, and what that gives back of their keys' limits.
-- Included by job.lua. `P usage:<days since 1970>` has a field for each sum: `<what> <key or -> <model> <owner>`.
local sums, policies = {}, {}

local function use(who, what, by)
  local field = what .. who
  sums[field] = (sums[field] or 0) + by
end

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
  if door and door.waiting then gather(waits, api_key, id) end
end

local function wait_no_more(id, api_key)
  if api_key ~= '' then gather(waits_no_more, api_key, id) end
end

local function keep_waits(command, lists)
  for api_key, ids in pairs(lists) do
    for first = 1, #ids, 2000 do
      redis.call(command, P .. 'waits:' .. api_key, unpack(ids, first, math.min(first + 1999, #ids)))
    end
  end
end

-- Whose a job is, as that stands in the sums; its key; what is held for it of the key's limits. Asked twice at most, one
-- job after the other. The model is the one that was asked for.
local whose_id, whose_it
local function whose(id)
  if whose_id == id then return whose_it end
  local job = redis.call('HMGET', P .. 'job:' .. id, 'ticket', 'model', 'held')
  local api_key, queue, user = string.match(job[1], '^%d+ %d+ %d+ %d+ %d+ %l%d*,?(%w*) (%S+) (.*)$')
  local model = job[2] or string.match(queue, ':(.+)')
  whose_id = id
  whose_it = {api_key = api_key, held = job[3],
    name = ' ' .. (api_key == '' and '-' or api_key) .. ' ' .. model .. ' ' .. user}
  return whose_it
end

-- What a job's usage (JSON) says, by what limits are in.
local function used_of(who, usage)
  local prompt = string.match(usage, '"prompt_tokens":(%d+)')
  local completion = string.match(usage, '"completion_tokens":(%d+)')
  local seconds = string.match(usage, '"audio_seconds":([%d.]+)')
  local micros, currency = string.match(usage, '"cost_micros":(%d+),"cost_currency":"(%u+)"')
  if prompt then use(who, 'prompt_tokens', tonumber(prompt)) end
  if completion then use(who, 'completion_tokens', tonumber(completion)) end
  if seconds then use(who, 'audio_seconds', math.ceil(seconds)) end
  if micros then use(who, 'cost:' .. currency, tonumber(micros)) end
  local tokens = (prompt or completion) and (prompt or 0) + (completion or 0) or nil
  local cost = micros and micros / 1000000 or (tokens or seconds) and 0 or nil -- what has no price costs nothing
  return {tokens = tokens, audio_seconds = tonumber(seconds), cost = cost}
end

-- Count a job that has just ended, once: with its end, in the same script. `usage` is '' when it has no result.
local function account(id, code, history, usage)
  local job = whose(id)
  use(job.name, STATES[code], 1)
  local used = usage ~= '' and used_of(job.name, usage)
  local door = job.held and door_of(job.api_key)
  if not door then return end
  -- Of a run that was stopped, or broke off in the middle of its answer, nobody knows what it took: then all that was
  -- held for it counts, or stopping a stream just before its end would cost nothing.
  if not used and code_of(history) == 'p' and (code ~= 'f' or redis.call('EXISTS', P .. 'tokens:' .. id) == 1) then
    used = {}
  end
  settle('k:' .. job.api_key, door.limits or {}, job.held, used or {tokens = 0, audio_seconds = 0, cost = 0})
end

-- Time that a run has kept a GPU busy, however it ended.
local function count_gpu(id, ms) use(whose(id).name, 'gpu_ms', ms) end

local function keep_usage()
  keep_waits('SADD', waits)
  keep_waits('SREM', waits_no_more)
  local key, fresh = P .. 'usage:' .. string.format('%d', math.floor(NOW / 86400000)), false
  for field, by in pairs(sums) do
    if redis.call('HINCRBY', key, field, string.format('%d', by)) == by then fresh = true end
  end
  if not fresh then return end
  redis.call('PEXPIRE', key, redis.call('HGET', P .. 'ordinary', 'usage_ms') or 34560000000, 'NX')
end
