-- End a reservation and count what was spent: `counters.MemoryCounters.settle`. Sent again it
-- changes nothing. KEYS as in take.lua. ARGV: how long to remember that it is done in ms, then five
-- a budget: spent, seen, how many ms to keep it, its name in the index, itself.
local state, result, parts = redis.call('GET', KEYS[1]), {}, {}
for part in string.gmatch(state or '', '%S+') do parts[#parts + 1] = part end
for i = 1, #KEYS - 2 do
  local key, a = KEYS[i + 2], 1 + (i - 1) * 5
  if state ~= 'done' then
    if redis.call('EXISTS', key) == 0 then
      list(KEYS[2], ARGV[a + 3], ARGV[a + 4])
      redis.call('HSET', key, 'b', ARGV[a + 5])
    end
    local before = tonumber(redis.call('HGET', key, 's') or '0')
    if before < tonumber(ARGV[a + 2]) then redis.call('HSET', key, 's', ARGV[a + 2]) end
    redis.call('HINCRBY', key, 's', ARGV[a + 1])
    local bucket, amount = 'h' .. (parts[1] or ''), parts[i + 1] or '0'
    if amount ~= '0' and redis.call('HEXISTS', key, bucket) == 1 then
      if redis.call('HINCRBY', key, bucket, '-' .. amount) <= 0 then
        redis.call('HDEL', key, bucket)
      end
    end
    keep(key, ARGV[a + 3])
  end
  result[i] = tonumber(redis.call('HGET', key, 's') or '0')
end
redis.call('SET', KEYS[1], 'done', 'PX', ARGV[1])
return result
