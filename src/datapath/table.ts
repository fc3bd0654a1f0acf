/**
 * A VALE switch's table of addresses: netmap_vale_learning of netmap_vale.c. 1024 entries, one per hash value: a new
 * address takes the place of whatever had the same hash. Entries do not age; they go when replaced, when their address
 * shows up at another port, and when their port is detached.
 *
 * An entry is one u64: address in the low 48 bits as it lies in a frame, port_id + 1 above (src/abi/host.ts, hash_ent).
 */
import {
  DST_FLOOD,
  DST_NONE,
  domain_ht,
  hash_ent_port,
  hash_ent_size,
  NM_BDG_HASH,
  NS_NO_LEARN,
} from './layouts.generated';

const MAC_MASK: u64 = 0xffff_ffff_ffff;
const PORT_SHIFT: u64 = 8 * hash_ent_port;
/** log2(NM_BDG_HASH) */
const HASH_BITS: u64 = 10;

/** Offset of an address's entry in the table. Multiplicative hash (2^64 / golden ratio): its high bits are the good ones. */
function rthash(mac: u64): usize {
  return <usize>((mac * 0x9e37_79b9_7f4a_7c15) >> (64 - HASH_BITS)) * hash_ent_size;
}

/**
 * Learns a frame's source and returns its destination: a port_id, DST_FLOOD (broadcast, multicast, unknown), or
 * DST_NONE (the port it came from).
 * @param header the frame's first 16 bytes, read once @param me port_id of its sender @param flags of its first slot
 */
export function lookup(d: usize, me: u32, header: v128, flags: u32): u32 {
  const lo = i64x2.extract_lane(header, 0);
  const dmac = lo & MAC_MASK;
  const smac = (lo >>> 48) | ((i64x2.extract_lane(header, 1) & 0xffff_ffff) << 16);
  if (((smac & 1) | (flags & NS_NO_LEARN)) == 0) {
    const ent = d + rthash(smac);
    const learned = smac | ((<u64>me + 1) << PORT_SHIFT);
    if (load<u64>(ent, domain_ht) != learned) store<u64>(ent, learned, domain_ht);
  }
  // Group addresses are never learned, hence never found.
  const found = load<u64>(d + rthash(dmac), domain_ht);
  const port = <u32>(found >> PORT_SHIFT);
  if (((found ^ dmac) & MAC_MASK) != 0 || port == 0) return DST_FLOOD;
  return port - 1 == me ? DST_NONE : port - 1;
}

/** Forgets every address of a port. */
export function forgetPort(d: usize, id: u32): void {
  const end = d + NM_BDG_HASH * hash_ent_size;
  for (let ent = d; ent != end; ent += hash_ent_size) {
    if (<u32>(load<u64>(ent, domain_ht) >> PORT_SHIFT) == id + 1) store<u64>(ent, 0, domain_ht);
  }
}
