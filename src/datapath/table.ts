/**
 * A VALE switch's table of addresses: netmap_vale_learning of netmap_vale.c. 1024 entries, one per hash value: a new
 * address takes the place of whatever had the same hash. Entries do not age; they go when replaced, when their address
 * shows up at another port, and when their port is detached.
 *
 * An entry is one u64: port_id + 1 in the low 16 bits, the address above, as it lies in a frame (src/abi/host.ts, hash_ent).
 */
import { domain_ht, hash_ent_mac, hash_ent_size, NM_BDG_HASH, NM_BDG_MAXPORTS, NS_NO_LEARN } from './layouts.generated';
import { loadFrame64 } from './peer';

/** The least that `find` says of an address that no port has. */
export const ALL_PORTS: u64 = NM_BDG_MAXPORTS;
/** Bits of an entry that are not its address. */
const PORT_MASK: u64 = 0xffff;
const GROUP: u64 = 1 << (8 * hash_ent_mac);
/** log2(NM_BDG_HASH) */
const HASH_BITS: u64 = 10;

/**
 * Offset of an address's entry in the table; the address is in the high 48 bits. Multiplicative hash (2^64 / golden ratio):
 * its high bits are the good ones.
 */
function rthash(mac: u64): usize {
  return <usize>((mac * 0x9e37_79b9_7f4a_7c15) >> (64 - HASH_BITS)) * hash_ent_size;
}

/**
 * Learns a frame's source.
 * @param me port_id of its sender @param flags of its first slot
 */
export function learn(d: usize, me: u32, eth: usize, flags: u32): void {
  const smac = loadFrame64(eth + 4) & ~PORT_MASK;
  const ent = d + rthash(smac);
  const learned = smac | (<u64>me + 1);
  const known = load<u64>(ent, domain_ht);
  // One branch while nothing is new.
  if (known != learned) store<u64>(ent, ((smac & GROUP) | (flags & NS_NO_LEARN)) == 0 ? learned : known, domain_ht);
}

/** The port_id a frame goes to; ALL_PORTS or more: to all (broadcast, multicast, unknown). */
export function find(d: usize, eth: usize): u64 {
  const dmac = loadFrame64(eth) << (8 * hash_ent_mac);
  // Of an entry with this address, the port is left. Group addresses are never learned, hence never found.
  return (load<u64>(d + rthash(dmac), domain_ht) ^ dmac) - 1;
}

/** Forgets every address of a port. */
export function forgetPort(d: usize, id: u32): void {
  const end = d + NM_BDG_HASH * hash_ent_size;
  for (let ent = d; ent != end; ent += hash_ent_size) {
    if ((load<u64>(ent, domain_ht) & PORT_MASK) == id + 1) store<u64>(ent, 0, domain_ht);
  }
}
