-- Limits that all machines count together: what flowstack/limits/remote.py calls. Loaded as a library of Redis functions
-- whose name, LIBRARY here, has the hash of this text, so that two versions of Flowstack can share one Redis. They count
-- together there, as what is kept is the same for both:
--
-- Each limit has a key of its own:
--   window   a hash: b, the newest bucket of two seconds; t, what counts; 0 to 30, the buckets' amounts
--   flight   a hash: what each worker has in flight
--   money    a hash: t, what was used and reserved in the period; e, when an operator reset it (microseconds); and what
--            each worker has added since then, so that a worker can say it again after a failover
-- and one sorted set has until when each worker counts as alive: microseconds, of which the last three digits are the
-- number of its connection. Every time here is this server's.
--
-- What counts must not be asked of a Redis that has lost what a worker told it, nor by what a worker sent on a connection
-- that it has given up: its next one has told anew what was in flight. So take, give and again begin with the worker and
-- the number of its connection, and do nothing where these are not known.
--
-- Numbers are exact up to 2^53.
--
-- Something else may be in the place of a limit. All that is to be written is read before, so that nothing is taken of a
-- request's limits where one of them is not as it was left.

local WORKERS = 'flowstack:workers'
local BUCKETS, GRAIN = 31, 2
local WINDOW_SECONDS, FLIGHT_SECONDS = 70, 604800
local FORGOTTEN = 604800000000
-- A budget's key outlives its period by so many milliseconds: what was asked before the end and comes after it must find
-- what was spent, and not an empty budget.
local LATE = 60000
local MOST = 2 ^ 62
local UNKNOWN = 'ERR this worker is not known here, or not by this connection'
local NO_NUMBER = 'ERR hash value is not an integer'

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- A whole number as Redis takes it, however large.
local function whole(number)
  return string.format('%.0f', number)
end

-- What a hash has in a field; 0 where it has nothing.
local function read(value)
  local found = tonumber(value or 0)
  if not found or found % 1 ~= 0 or math.abs(found) > MOST then error({err = NO_NUMBER}) end
  return found
end

-- So much of an amount that the sum is none at which Redis would fail.
local function bounded(total, amount)
  return math.max(math.min(amount, MOST - total), -MOST - total)
end

local function known(worker, connection, time)
  local score = tonumber(redis.call('ZSCORE', WORKERS, worker) or 0)
  return score >= time and score % 1000 == tonumber(connection)
end

-- The bucket in which a window was changed last (later than this one where the clock was set back), and what counts now;
-- no bucket where nothing does.
local function live(key, bucket)
  local got = redis.call('HMGET', key, 'b', 't', bucket % BUCKETS)
  local newest = tonumber(got[1])
  if not newest or not (bucket - newest < BUCKETS) then return nil, 0 end
  local total = read(got[2])
  if newest >= bucket then
    read(got[3])
    return newest, total
  end
  local old = {}
  for number = newest + 1, bucket do old[#old + 1] = number % BUCKETS end
  local amounts = redis.call('HMGET', key, unpack(old))
  for at = 1, #old do total = total - read(amounts[at]) end
  return newest, total
end

-- Count an amount now, given what live said. Returns what counts then, and in which bucket that was.
local function add(key, newest, total, bucket, amount)
  amount = bounded(total, amount)
  if newest and newest >= bucket then
    redis.call('HINCRBY', key, newest % BUCKETS, whole(amount))
    return redis.call('HINCRBY', key, 't', whole(amount)), newest
  end
  if not newest then
    redis.call('DEL', key)
  else
    local old = {}
    for number = newest + 1, bucket do old[#old + 1] = number % BUCKETS end
    redis.call('HDEL', key, unpack(old))
  end
  redis.call('HSET', key, 'b', bucket, 't', whole(total + amount), bucket % BUCKETS, whole(amount))
  redis.call('EXPIRE', key, WINDOW_SECONDS)
  return total + amount, bucket
end

-- What is in flight. Where it seems too much, what dead workers had is taken off.
local function flight(key, most, time)
  local sum = 0
  for _, count in ipairs(redis.call('HVALS', key)) do sum = sum + read(count) end
  if sum < most then return sum end
  local all = redis.call('HGETALL', key)
  for at = 1, #all, 2 do
    local alive = tonumber(redis.call('ZSCORE', WORKERS, all[at]) or 0)
    if alive < time then
      redis.call('HDEL', key, all[at])
      sum = sum - tonumber(all[at + 1])
    end
  end
  return sum
end

-- What is used of a budget, when it was reset, and what a worker has added since, where one is named.
local function spent(key, worker)
  local got = redis.call('HMGET', key, 't', 'e', worker or 't')
  return read(got[1]), read(got[2]), read(got[3])
end

local function expire(key, ends)
  if ends > 0 then redis.call('PEXPIREAT', key, ends + LATE) end
end

-- Add to a budget of which so much is used. When a worker does so first, what is known of those that are forgotten goes:
-- nobody will say it again.
local function add_money(key, worker, used, amount, ends)
  if amount == 0 then return end
  amount = bounded(used, amount)
  redis.call('HINCRBY', key, 't', whole(amount))
  if redis.call('HINCRBY', key, worker, whole(amount)) ~= amount then return end
  for _, name in ipairs(redis.call('HKEYS', key)) do
    if name ~= 't' and name ~= 'e' and not redis.call('ZSCORE', WORKERS, name) then redis.call('HDEL', key, name) end
  end
  expire(key, ends)
end

-- All that is known of some limits, to tell a client or an operator of them.
local function look(keys, kinds, time)
  local all = {}
  for at, key in ipairs(keys) do
    local kind = kinds[at]
    if kind == 'p' then
      all[at] = {flight(key, 0, time)}
    elseif kind == 'm' then
      local used, reset = spent(key)
      all[at] = {used, reset}
    else
      local names = {'b', 't'}
      for number = 0, BUCKETS - 1 do names[number + 3] = number end
      local cells = redis.call('HMGET', key, unpack(names))
      for number = 1, #names do cells[number] = tonumber(cells[number]) or 0 end
      all[at] = cells
    end
  end
  return all
end

-- Take of all limits what a request needs, or nothing.
--   worker, its connection, the request's tokens (-1 not known yet, -2 none, as it only looks), its cost (or -1 or -2), how
--   much must be left of a budget (or -1); then for each key a word: r|t|p|m|l, 1 where it is of the group or 0, the most;
--   of m then ':' and when the period ends (ms)
--     r  a request        t  its tokens        p  one in flight        m  its cost
--     l  a look at a window, for the figures of the answer
-- Returns the time, 0, and for each key two numbers (requests or tokens that count, newest bucket; what is in flight, 0;
-- what is spent, when it was reset); or the time, the number of the key that refused, and what look gives.
local function take(keys, args)
  local worker, time = args[1], now()
  if not known(worker, args[2], time) then return redis.error_reply(UNKNOWN) end
  local tokens, cost, least = tonumber(args[3]), tonumber(args[4]), tonumber(args[5])
  local bucket = math.floor(time / 1000000 / GRAIN)
  local refused, why, part_refused = 0, 0, '2'
  local found, newest, kinds, ends = {}, {}, {}, {}
  for at, key in ipairs(keys) do
    local word = args[5 + at]
    local kind, part, most = word:sub(1, 1), word:sub(2, 2), word:sub(3)
    local order = 0
    if kind == 'm' then
      local colon = most:find(':', 1, true)
      ends[at] = tonumber(most:sub(colon + 1))
      most = tonumber(most:sub(1, colon - 1))
      found[at], newest[at] = spent(key, worker)
      if cost >= 0 then
        if found[at] + cost > most then
          local left = most - found[at]
          if least < 0 or left <= 0 or left < least then order = cost > most and 5 or 4 end
        end
      elseif cost == -1 and found[at] >= most then
        order = 4
      end
    elseif kind == 'p' then
      most = tonumber(most)
      found[at], newest[at] = flight(key, most, time), 0
      if found[at] + 1 > most then order = 2 end
    else
      most = tonumber(most)
      newest[at], found[at] = live(key, bucket)
      if kind == 'r' then
        if found[at] + 1 > most then order = 1 end
      elseif kind == 't' then
        if tokens > most then
          order = 6
        elseif tokens > 0 then
          if found[at] + tokens > most then order = 3 end
        elseif tokens ~= -2 and found[at] >= most then
          order = 3
        end
      end
    end
    kinds[at] = kind
    if order > 0 and (part < part_refused or (part == part_refused and order > why)) then
      refused, why, part_refused = at, order, part
    end
  end
  if refused > 0 then return {time, refused, look(keys, kinds, time)} end
  local answer, size = {time, 0}, 2
  for at, key in ipairs(keys) do
    local kind, one, two = kinds[at], found[at], newest[at] or 0
    if kind == 'r' then
      one, two = add(key, newest[at], one, bucket, 1)
    elseif kind == 't' and tokens > 0 then
      one, two = add(key, newest[at], one, bucket, tokens)
    elseif kind == 'p' then
      redis.call('HINCRBY', key, worker, 1)
      redis.call('EXPIRE', key, FLIGHT_SECONDS)
      one = one + 1
    elseif kind == 'm' and cost >= 0 then
      add_money(key, worker, one, cost, ends[at])
      one = one + cost
    end
    answer[size + 1], answer[size + 2] = one, two
    size = size + 2
  end
  return answer
end

-- One less of a worker's is in flight.
local function landed(key, worker)
  if read(redis.call('HGET', key, worker)) > 0 and redis.call('HINCRBY', key, worker, -1) == 0 then
    redis.call('HDEL', key, worker)
  end
end

-- So many tokens more than were taken; or less, than were in that bucket.
local function recount(key, bucket, amount, second)
  local newest, total = live(key, bucket)
  if amount > 0 then
    add(key, newest, total, bucket, amount)
  elseif newest and second > newest - BUCKETS then
    local counted = read(redis.call('HGET', key, second % BUCKETS))
    local less = math.min(-amount, counted)
    if less > 0 then
      redis.call('HINCRBY', key, second % BUCKETS, whole(-less))
      redis.call('HINCRBY', key, 't', whole(-less))
    end
  end
end

-- A charge in the place of what was taken for it. Returns what was added, and when the budget was reset.
local function charge(key, worker, amount, taken, at, ends)
  local used, reset = spent(key, worker)
  if at > reset then amount = amount - taken end
  add_money(key, worker, used, amount, ends)
  return amount, reset
end

-- Do something of one key. What cannot be done, as something else is there, keeps no other from being done.
-- Returns why it could not; or nothing, and what it gives.
local function try(todo, ...)
  local done, one, two = pcall(todo, ...)
  if done then return nil, one, two end
  local why = type(one) == 'table' and one.err or tostring(one)
  if not why:find('WRONGTYPE', 1, true) and not why:find(NO_NUMBER, 1, true) then error(one, 0) end
  return why
end

-- One entry of give. Of money it returns two numbers.
local function settle(key, worker, word, bucket)
  local kind = word:sub(1, 1)
  if kind == 'p' then return landed(key, worker) end
  if kind == 't' then
    local amount, second = word:match('^t(%-?%d+) (%d+)$')
    return recount(key, bucket, tonumber(amount), tonumber(second))
  end
  local amount, taken, at, ends = word:match('^m(%d+) (%d+) (%d+) (%d+)$')
  return charge(key, worker, tonumber(amount), tonumber(taken), tonumber(at), tonumber(ends))
end

-- Settle what was taken, of one request or several.
--   worker, its connection, then for each key a word
--     p  (one less in flight)
--     t  how many tokens more, or less, than were taken; and in which bucket these count
--     m  the charge, what was taken for it, when that was (microseconds), when the period ends (ms)
-- Returns the time, for each m what was added, and when it was reset (-1 where that could not be done); and last, where
-- something could not be done, why.
local function give(keys, args)
  local worker, time = args[1], now()
  if not known(worker, args[2], time) then return redis.error_reply(UNKNOWN) end
  local bucket = math.floor(time / 1000000 / GRAIN)
  local answer, why = {time}, nil
  for at, key in ipairs(keys) do
    local word = args[2 + at]
    local fault, added, reset = try(settle, key, worker, word, bucket)
    why = why or fault
    if word:byte() == 109 then
      answer[#answer + 1] = added or 0
      answer[#answer + 1] = reset or -1
    end
  end
  answer[#answer + 1] = why
  return answer
end

-- A worker has so many in flight.
local function flies(key, worker, count)
  if count > 0 then
    redis.call('HSET', key, worker, count)
    redis.call('EXPIRE', key, FLIGHT_SECONDS)
  else
    redis.call('HDEL', key, worker)
  end
  return 0
end

-- A worker has added so much to a budget since that reset. Returns when it was reset.
local function adds(key, worker, amount, since, ends)
  local used, reset, told = spent(key, worker)
  if since > reset then
    redis.call('DEL', key)
    redis.call('HSET', key, 'e', since)
    expire(key, ends)
    used, reset, told = 0, since, 0
  end
  if since == reset then add_money(key, worker, used, amount - told, ends) end
  return reset
end

-- Say again what this worker has in flight and has added: of what was lost, nothing then is; what was told twice counts once.
--   worker, its connection, then for each key: kind, and three more
--     p  how many
--     m  how much, since which reset (microseconds), when the period ends (ms)
-- Returns the time, and for each key when it was reset (-1 where that could not be done); and last, where something could
-- not be done, why.
local function again(keys, args)
  local worker, time = args[1], now()
  if not known(worker, args[2], time) then return redis.error_reply(UNKNOWN) end
  local answer, why = {time}, nil
  for at, key in ipairs(keys) do
    local first = 3 + (at - 1) * 4
    local amount, since, ends = tonumber(args[first + 1]), tonumber(args[first + 2]), tonumber(args[first + 3])
    local fault, reset = try(args[first] == 'p' and flies or adds, key, worker, amount, since, ends)
    why = why or fault
    answer[#answer + 1] = reset or -1
  end
  answer[#answer + 1] = why
  return answer
end

-- A worker is alive for so many microseconds more, by its connection of this number: a new one (1), or the one that is
-- known. It ends with 0.
local function alive(keys, args)
  local worker, connection, time = args[1], tonumber(args[2]), now()
  if args[4] ~= '1' and not known(worker, connection, time) then return redis.error_reply(UNKNOWN) end
  redis.call('ZREMRANGEBYSCORE', WORKERS, '-inf', time - FORGOTTEN)
  if tonumber(args[3]) > 0 then
    local ends = time + tonumber(args[3])
    redis.call('ZADD', WORKERS, whole(ends - ends % 1000 + connection), worker)
  else
    redis.call('ZREM', WORKERS, worker)
  end
  return {time}
end

-- Each key's kind. Returns the time, and what is known of each.
local function show(keys, args)
  local time = now()
  return {time, look(keys, args, time)}
end

-- Have budgets begin anew. When each period ends (ms). Returns the time, and what had been charged of each.
local function reset(keys, args)
  local answer = {now()}
  for at, key in ipairs(keys) do
    local used = spent(key)
    redis.call('DEL', key)
    redis.call('HSET', key, 'e', now())
    if tonumber(args[at]) > 0 then redis.call('PEXPIREAT', key, tonumber(args[at]) + LATE) end
    answer[at + 1] = used
  end
  return answer
end

-- Remember a text for so many milliseconds, if there is none under this key.
local function keep(keys, args)
  redis.call('SET', keys[1], args[3], 'PX', args[4], 'NX')
  return {now()}
end

local function find(keys, args)
  return {now(), redis.call('GET', keys[1]) or ''}
end

-- Work that one machine began and any may see finished has a hash: j, what is known of it; w, the worker that is about to
-- charge it, and n, the number of its attempt; c, where it was charged.

-- Remember work: what is known of it, for how long (ms).
local function begin(keys, args)
  if redis.call('EXISTS', keys[1]) == 0 then
    redis.call('HSET', keys[1], 'j', args[3])
    redis.call('PEXPIRE', keys[1], args[4])
  end
  return {now()}
end

-- Claim work, to charge it: the number of the attempt; what this worker knows of it, or nothing; for how long (ms).
-- Returns the time, and 1 and what is known of it; 0 where nothing is; 2 where another has it; 3 where it was charged.
local function claim(keys, args)
  local key, worker, time = keys[1], args[1], now()
  if not known(worker, args[2], time) then return redis.error_reply(UNKNOWN) end
  local got = redis.call('HMGET', key, 'j', 'w', 'n', 'c')
  if got[4] then return {time, 3, ''} end
  local by, same = got[2], got[2] == worker and got[3] == args[3]
  if by and not same and tonumber(redis.call('ZSCORE', WORKERS, by) or 0) >= time then return {time, 2, ''} end
  local text = got[1] or args[4]
  if text == '' then return {time, 0, ''} end
  redis.call('HSET', key, 'j', text, 'w', worker, 'n', args[3])
  redis.call('PEXPIRE', key, args[5])
  return {time, 1, text}
end

-- Say that claimed work was charged: the number of the attempt. Returns the time, and 1 where it was this one's to say.
local function charged(keys, args)
  local worker, time = args[1], now()
  if not known(worker, args[2], time) then return redis.error_reply(UNKNOWN) end
  local got = redis.call('HMGET', keys[1], 'w', 'n')
  if got[1] ~= worker or got[2] ~= args[3] then return {time, 0} end
  redis.call('HSET', keys[1], 'c', 1)
  redis.call('HDEL', keys[1], 'j')
  return {time, 1}
end

redis.register_function('LIBRARY_keep', keep)
redis.register_function('LIBRARY_find', find)
redis.register_function('LIBRARY_begin', begin)
redis.register_function('LIBRARY_claim', claim)
redis.register_function('LIBRARY_charged', charged)
redis.register_function('LIBRARY_take', take)
redis.register_function('LIBRARY_give', give)
redis.register_function('LIBRARY_again', again)
redis.register_function('LIBRARY_alive', alive)
redis.register_function('LIBRARY_show', show)
redis.register_function('LIBRARY_reset', reset)
