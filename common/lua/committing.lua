-- committing.lua: what commit.lua and turn.lua share.
local q, RETENTION_MS = at(ARGV[1]), nil
local JOB = P .. 'job:'
local OUTCOMES = {completed = 'c', incomplete = 'i', failed = 'f', retry = 's', release = 'q'}
local answers, leases, closed, runs = {}, {}, {}, {}
local talk -- the conversation of the job at hand, if it is of one
local foretold -- when the job at hand was to end, if anybody was told
local ticket, model_of, held_for -- of the job at hand: its ticket, another model than the queue's, what is held for it
local spent -- of the job at hand: ms of its workers' time in all its runs, this one included

local function stop(id, key, code, history, step, number, body, usage)
  local field = code == 'f' and 'error' or 'result'
  local after = move(id, q, history, code, number)
  if usage == '' and spent == 0 then
    redis.call('HSET', key, 'history', after, field, body)
  else
    local record = {'history', after, field, body}
    if usage ~= '' then append(record, 'usage', usage) end
    if spent > 0 then append(record, 'gpu_ms', spent) end
    redis.call('HSET', key, unpack(record))
  end
  account(id, code, history, usage, ticket, model_of, held_for)
  tell(id, code, history)
  redis.call('PEXPIRE', key, RETENTION_MS, 'NX') -- a record that must be kept longer has its end already
  if #history > 31 or number ~= '3' then -- it has, or may have, token events
    redis.call('PEXPIRE', P .. 'tokens:' .. id, RETENTION_MS)
  end
  local cost, currency = nil, nil
  if usage ~= '' then cost, currency = string.match(usage, '"cost_micros":(%d+),"cost_currency":"(%u+)"') end
  if cost then -- by the model that the worker names when it runs another one's jobs
    local model = string.match(redis.call('HGET', key, 'worker'), '@(.+)') or string.match(ARGV[1], ':(.+)')
    count(q, 'cost:' .. currency .. ':' .. model, tonumber(cost))
  end
  append(closed, id)
  if talk then conversations().pass_turn(id, ticket.user, talk) end
  local ran = NOW - tonumber(string.sub(step, -13))
  observe(q, 'run', ran)
  if foretold then judge(q, foretold, NOW) end
  return ran
end

-- Tokens or seconds of audio that a run has used.
local function units_of(usage)
  return tonumber(string.match(usage, '"total_tokens":(%d+)') or string.match(usage, '"audio_seconds":([%d.]+)') or 0)
end

-- A handled failure counts an attempt: another one after a pause, or the end.
local function fail(id, key, text, code, history, step, number, body, delay_ms)
  local after = of_ticket(text)
  after.attempts = after.attempts + 1
  if after.attempts >= tonumber(after.tries) then code = 'f' end
  redis.call('HSET', key, 'ticket', to_ticket(after), 'by', step)
  if code == 'f' then return stop(id, key, code, history, step, number, body, '') end
  local due = NOW + delay_ms
  redis.call('HSET', key, 'history', (move(id, q, history, 's', number)), 'error', body, 'due', due)
  schedule(id, due)
  wait_on(id, ticket.api_key)
end

-- Whether a commit under this lease was stored before. What follows the lease's step tells, but for two moves that a
-- rescue makes too: for those the record says by whom.
local function is_mine(id, history, step)
  return string.find(history, step .. ' %d+[cis]') ~= nil or redis.call('HGET', JOB .. id, 'by') == step
end

-- What a run has used is known now: the queue's measure, its owner's tag and limits are put right with it. Many runs of
-- a call are alike in that.
local some_bounded -- whether any owner's jobs are counted: asked once a call
local function note_run(charged, gpu_ms, usage)
  local used = 0
  if usage ~= '' then used = units_of(usage) end
  measure(used, gpu_ms)
  if some_bounded == nil then some_bounded = redis.call('EXISTS', P .. 'standing') == 1 end
  if not (charged or some_bounded) and gpu_ms <= LEAST_COST then return end
  local cost, alike = gpu_ms > LEAST_COST and gpu_ms or LEAST_COST, ticket.run
  if alike and alike.charged == charged and alike.cost == cost then
    alike.n, alike.used = alike.n + 1, alike.used + used
  else
    ticket.run = {owner = ticket.user, units = ticket.units, charged = charged, cost = cost, used = used, n = 1}
    append(runs, ticket.run)
  end
end

local function put_right()
  for _, run in ipairs(runs) do owners().put_right(q, run) end
  if made then made.settle() end
end

local function commit(i)
  local held, number, body, extra, gpu_ms = ARGV[i], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5]
  local id, step = of_lease(held)
  local code = OUTCOMES[ARGV[i + 1]]
  local key = JOB .. id
  local job = redis.call('HMGET', key, 'history', 'ticket', 'eta', 'charged', 'model', 'held', 'conversation')
  local history, charged = job[1], job[4]
  if not history or not is_last(history, step) then
    return history and is_mine(id, history, step) and 'mine' or 'lost'
  end
  append(leases, held)
  foretold, ticket, model_of, held_for = job[3], look_at_ticket(job[2]), job[5], job[6]
  talk, gpu_ms = job[7], tonumber(gpu_ms)
  spent = gpu_ms
  if #history > 31 then spent = spent + (redis.call('HGET', key, 'gpu_ms') or 0) end -- it may have run before
  if gpu_ms > 0 then
    if code ~= 'c' and code ~= 'i' then redis.call('HSET', key, 'gpu_ms', spent) end
    use(who_of(ticket, model_of), 'gpu_ms', gpu_ms)
  end
  if code == 'q' then
    if gpu_ms > 0 then -- its next run goes on with what is left of the charge
      charged = charged or owners().charged_as(owners().share_of(ticket.user), q, LEAST_COST, ticket.units)
      redis.call('HSET', key, 'charged', (string.gsub(charged, '^%S+', owners().charge_of(charged).cost - gpu_ms)))
    end
    give_back(id, q, ticket.lane, history, number)
    wait_on(id, ticket.api_key)
    redis.call('HSET', key, 'by', step)
  elseif code == 'f' or code == 's' then
    fail(id, key, job[2], code, history, step, number, body, code == 's' and extra)
    note_run(charged, gpu_ms, '')
    if charged then redis.call('HDEL', key, 'charged') end
  else
    local ran = stop(id, key, code, history, step, number, body, extra)
    note_run(charged, gpu_ms, extra)
    learn(q, ticket.units, ran)
  end
  return 'stored'
end

local function commit_from(first, retention_ms)
  RETENTION_MS = retention_ms
  even_when_full()
  for i = first, #ARGV, 6 do append(answers, commit(i)) end
  keep_pace(q)
  if #leases > 0 then redis.call('ZREM', q .. 'leases', unpack(leases)) end
  if #closed > 0 then redis.call('ZREM', P .. 'expiry', unpack(closed)) end
  put_right()
  return answers
end
