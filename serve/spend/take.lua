-- Reserve for one request in all of its budgets, or in none: `counters.MemoryCounters.take`.
-- KEYS: the reservation (the minute in which it lapses and its amounts, or "done"), the index, then
-- a hash a budget: "s" spent, "h<minute>" what is held until then, "b" the budget itself. ARGV:
-- minute now, minute in which it lapses, lease in ms, then eight a budget: limit, soft or -1, full,
-- weak, seen, how many ms to keep it, its name in the index, itself.
local n, minute = #KEYS - 2, tonumber(ARGV[1])
local spent, held, level = {}, {}, 0
for i = 1, n do
  local key, a = KEYS[i + 2], 3 + (i - 1) * 8
  local fields = redis.call('HGETALL', key)
  spent[i], held[i] = 0, 0
  for j = 1, #fields, 2 do
    local name = fields[j]
    if name == 's' then
      spent[i] = tonumber(fields[j + 1])
    elseif string.sub(name, 1, 1) == 'h' then
      if tonumber(string.sub(name, 2)) <= minute then
        redis.call('HDEL', key, name)
      else
        held[i] = held[i] + tonumber(fields[j + 1])
      end
    end
  end
  spent[i] = math.max(spent[i], tonumber(ARGV[a + 5]))
  local used, soft = spent[i] + held[i], tonumber(ARGV[a + 2])
  if soft >= 0 and (used >= soft or used + tonumber(ARGV[a + 3]) > tonumber(ARGV[a + 1])) then
    level = 1
  end
end
for i = 1, n do
  local a = 3 + (i - 1) * 8
  local amount = tonumber(ARGV[a + 3 + level])
  if amount > 0 and spent[i] + held[i] + amount > tonumber(ARGV[a + 1]) then
    return {2, i - 1, level, spent[i], held[i]}
  end
end
local parts = {ARGV[2]}
for i = 1, n do parts[i + 1] = ARGV[3 + (i - 1) * 8 + 3 + level] end
if redis.call('SET', KEYS[1], table.concat(parts, ' '), 'NX', 'PX', ARGV[3]) then
  for i = 1, n do
    local key, a = KEYS[i + 2], 3 + (i - 1) * 8
    if redis.call('EXISTS', key) == 0 then
      list(KEYS[2], ARGV[a + 6], ARGV[a + 7])
    end
    redis.call('HSET', key, 's', string.format('%d', spent[i]), 'b', ARGV[a + 8])
    redis.call('HINCRBY', key, 'h' .. ARGV[2], parts[i + 1])
    keep(key, ARGV[a + 6])
  end
end
return {level, unpack(spent)}
