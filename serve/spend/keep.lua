-- Of both scripts, before the rest. A counter is kept for so long from now, by Redis's clock, and
-- never for less than before: by the clock of a server that is days behind its window's end may be
-- past. The index goes by that clock too.
local function keep(key, ms)
  if redis.call('PTTL', key) < tonumber(ms) then redis.call('PEXPIRE', key, ms) end
end
local function list(index, ms, name)
  redis.call('ZADD', index, redis.call('TIME')[1] * 1000 + ms, name)
end
