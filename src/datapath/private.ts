/** Small helpers on host-private memory (src/abi/host.ts): counters and lists of u32. */

/** Adds to the 64-bit counter at `p`. Readers on other threads may see it late, never torn (aligned). */
export function bump(p: usize, n: u32): void {
  store<u64>(p, load<u64>(p) + n);
}

/** Counts a packet that is not delivered, which takes 0 slots. */
export function drop(counter: usize): u32 {
  bump(counter, 1);
  return 0;
}

/** Appends to a list: `num` is the address of its count, `list` of its elements. Returns the position. */
export function push(num: usize, list: usize, value: usize): u32 {
  const n = load<u32>(num);
  store<u32>(list + (n << 2), <u32>value);
  store<u32>(num, n + 1);
  return n;
}

/** Element i of a list of addresses. */
export function at(list: usize, i: u32): usize {
  return load<u32>(list + (i << 2));
}

export function put(list: usize, i: u32, value: usize): void {
  store<u32>(list + (i << 2), <u32>value);
}

/** Takes element i away by moving the last one there, which is returned; 0 if i was the last. */
export function removeAt(num: usize, list: usize, i: u32): usize {
  const last = load<u32>(num) - 1;
  store<u32>(num, last);
  if (i == last) return 0;
  const moved = load<u32>(list + (last << 2));
  store<u32>(list + (i << 2), moved);
  return moved;
}

/** Element i of a table of u64. */
export function at64(table: usize, i: u32): u64 {
  return load<u64>(table + (i << 3));
}

export function put64(table: usize, i: u32, value: u64): void {
  store<u64>(table + (i << 3), value);
}
