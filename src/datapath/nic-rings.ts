/**
 * Words of a nic_queue's four rings (linux/if_xdp.h), which the kernel or a pump writes on the other side: producer and
 * consumer count entries for ever and wrap, an entry's place is its number and the mask. What the kernel says is believed.
 */

/** How many entries the other side has produced in all, or consumed. Pairs with its store after the entries. */
export function ringCount(word: usize): u32 {
  return atomic.load<u32>(word);
}

/** Says how many we have produced or consumed: entries written before are visible before. */
export function setRingCount(word: usize, count: u32): void {
  atomic.store<u32>(word, count);
}

/** struct xdp_desc: addr u64, len u32, options u32. */
function entry(desc: usize, i: u32): usize {
  return desc + (i << 4);
}

/** Where the frame of an entry begins: the address's upper 16 bits are an offset to the rest. */
export function descAddr(desc: usize, i: u32): u32 {
  const addr = load<u64>(entry(desc, i));
  return <u32>addr + <u32>(addr >> 48);
}

export function descLen(desc: usize, i: u32): u32 {
  return load<u32>(entry(desc, i), 8);
}

/** XDP_PKT_CONTD: the frame goes on in the next entry. */
export function descContinues(desc: usize, i: u32): bool {
  return (load<u32>(entry(desc, i), 12) & 1) != 0;
}

export function storeDesc(desc: usize, i: u32, addr: u32, len: u32, continues: bool): void {
  const p = entry(desc, i);
  store<u64>(p, addr);
  store<u32>(p, len, 8);
  store<u32>(p, continues ? 1 : 0, 12);
}

/** An entry of the fill ring. */
export function storeFill(desc: usize, i: u32, addr: u32): void {
  store<u64>(desc + (i << 3), addr);
}

function fillAddr(desc: usize, i: u32): u32 {
  return <u32>load<u64>(desc + (i << 3));
}

/**
 * The kernel gave the buffer of a fill address back. That is taken as entry `cons` of the fill ring: if it was a later one, the
 * two change places. So the entries after it, to `prod`, are what the kernel has, in whatever order it gives them back.
 */
export function givenBack(desc: usize, mask: u32, cons: u32, prod: u32, addr: u32): void {
  const first = fillAddr(desc, cons & mask);
  if (first == addr) return;
  for (let i = cons + 1; i != prod; i++) {
    if (fillAddr(desc, i & mask) != addr) continue;
    storeFill(desc, i & mask, first);
    return;
  }
}
