-- conversation.lua: jobs of one conversation run one after another. Included by job.lua.
-- `P conversation:<user>:<key>` lists its unfinished jobs in order (short ids). The first has its turn; the others are
-- scheduled, without a time, until the one before them has ended. Each terminal move passes the turn on; should that be
-- missed (Redis lost data), promote finds them after a minute.
local function make_conversations()
  local TURN_LOOK_MS = 60000

  local function conversation_of(user, name) return P .. 'conversation:' .. user .. ':' .. name end

  -- The job that has the turn, or nil; those that ended without a word are taken out.
  local function has_turn(key)
    while true do
      local short = redis.call('LINDEX', key, 0)
      if not short then return nil end
      local history = redis.call('HGET', P .. 'job:' .. id_of(short), 'history')
      if history and not string.find(TERMINAL, code_of(history), 1, true) then return short, history end
      redis.call('LPOP', key)
    end
  end

  local function start_turn(key)
    local short, history = has_turn(key)
    if not short or code_of(history) ~= 's' then return end
    local id = id_of(short)
    local ticket = of_ticket(redis.call('HGET', P .. 'job:' .. id, 'ticket'))
    local q = at(ticket.queue)
    redis.call('ZREM', P .. 'due', id)
    enqueue(q, id, ticket.lane, ticket.user)
    redis.call('HSET', P .. 'job:' .. id, 'history', (move(id, q, history, 'q')))
    ready(q, ticket.lane, ticket.user)
  end

  -- A job has ended. That of one which waited for its turn changes nothing for the others.
  local function pass_turn(id, user, name)
    local key, short = conversation_of(user, name), short_of(id)
    local was_first = redis.call('LINDEX', key, 0) == short
    redis.call('LREM', key, 1, short)
    if was_first then start_turn(key) end
  end

  return {TURN_LOOK_MS = TURN_LOOK_MS, conversation_of = conversation_of, has_turn = has_turn, pass_turn = pass_turn}
end

-- Made when first needed, as owners() is.
local conversations_made
local function conversations()
  conversations_made = conversations_made or make_conversations()
  return conversations_made
end
