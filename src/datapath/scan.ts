/**
 * VALE's first pass: the slots of a sender, each taken once and checked (R5), into the domain's `ft` (docs/datapath.md).
 *
 * Owner of everything here: the domain's datapath thread.
 */
import {
  domain_ft,
  domain_num_ft,
  FT_GROUP,
  kring_buf_base,
  kring_buf_size,
  kring_bytes,
  kring_drop_bad,
  kring_num_bufs,
  kring_num_slots,
  kring_port,
  kring_ring,
  NETMAP_MAX_FRAGS,
  NS_BUF_CHANGED,
  NS_INDIRECT,
  NS_MOREFRAG,
  NS_NO_LEARN,
  nm_bdg_fwd_frags,
  nm_bdg_fwd_len,
  nm_bdg_fwd_size,
  nm_bdg_fwd_src,
  port_vnet_hdr_len,
} from './layouts.generated';
import {
  bufValid,
  loadSlot,
  SLOT_BYTES,
  slotAt,
  slotFlags,
  slotIdx,
  slotLen,
  slotsBetween,
  storeSlotFlags,
} from './peer';
import { bump } from './private';

/** Bytes of an Ethernet header. */
const ETH_HLEN: u32 = 14;
/** Flags of a slot that need a closer look. */
const NS_SLOW: u32 = NS_MOREFRAG | NS_INDIRECT | NS_BUF_CHANGED | NS_NO_LEARN;

/**
 * First pass: takes slots of a tx ring from j on, at most to `head`, until FT_GROUP of them are in `ft` (the last chain
 * whole). Bad ones are counted here. Returns where it stopped.
 */
export function scan(d: usize, kr: usize, j: u32, head: u32): u32 {
  const ring: usize = load<u32>(kr, kring_ring);
  const n = load<u32>(kr, kring_num_slots);
  const start = d + domain_ft;
  const end = start + FT_GROUP * nm_bdg_fwd_size;
  let ft = start;
  while (j != head && ft < end) {
    // Plain packets of one slot, as far as the ring does not wrap.
    const ahead = (head > j ? head : n) - j;
    const room = <u32>(end - ft) / nm_bdg_fwd_size;
    const piece = slotAt(ring, j);
    const stop = piece + min(ahead, room) * SLOT_BYTES;
    const slot = scanPlain(kr, piece, stop, ft);
    const taken = slotsBetween(piece, slot);
    ft += taken * nm_bdg_fwd_size;
    j += taken;
    if (j == n) j = 0;
    if (slot == stop) continue;
    j = scanPacket(kr, ft, j, head);
    ft += <u32>load<u8>(ft, nm_bdg_fwd_frags) * nm_bdg_fwd_size;
  }
  store<u32>(d, <u32>(ft - start) / nm_bdg_fwd_size, domain_num_ft);
  return j;
}

/** Takes good slots that are a packet each into `ft`. Returns the address of the first slot that is not one, or `stop`. */
function scanPlain(kr: usize, slot: usize, stop: usize, ft: usize): usize {
  const base: usize = load<u32>(kr, kring_buf_base);
  const bufSize = load<u32>(kr, kring_buf_size);
  const bufs = load<u32>(kr, kring_num_bufs);
  const minLen = load<u32>(load<u32>(kr, kring_port), port_vnet_hdr_len) + ETH_HLEN;
  let bytes: u32 = 0;
  do {
    const w = loadSlot(slot);
    const len = slotLen(w);
    if ((slotFlags(w) & NS_SLOW) != 0) break;
    if (!bufValid(slotIdx(w), bufs)) break;
    if (len - minLen > bufSize - minLen) break;
    storeFwd(ft, base + slotIdx(w) * bufSize, len, 1, 0);
    bytes += len;
    ft += nm_bdg_fwd_size;
    slot += SLOT_BYTES;
  } while (slot != stop);
  bump(kr + kring_bytes, bytes);
  return slot;
}

function slotValid(w: u64, bufs: u32, bufSize: u32): bool {
  return bufValid(slotIdx(w), bufs) && slotLen(w) <= bufSize;
}

/** An entry of ft; of the flags, NS_NO_LEARN is kept. */
function storeFwd(ft: usize, src: usize, len: u32, frags: u32, flags: u32): void {
  const at = <u64>(len | (frags << 16) | ((flags & NS_NO_LEARN) << 24));
  store<u64>(ft, <u64>src | (at << 32), nm_bdg_fwd_src);
}

/**
 * Takes the packet whose first slot is j into `ft`, whole: up to the first slot without NS_MOREFRAG, or
 * to head, which cuts a chain off (what is there is sent, as netmap does). Its number of slots goes to frags of the
 * first entry; 0, and counted, if a slot is bad, there are more than NETMAP_MAX_FRAGS, or the Ethernet header is not
 * whole where it belongs. Returns the slot after the packet.
 */
function scanPacket(kr: usize, ft: usize, j: u32, head: u32): u32 {
  const ring: usize = load<u32>(kr, kring_ring);
  const n = load<u32>(kr, kring_num_slots);
  const base: usize = load<u32>(kr, kring_buf_base);
  const bufSize = load<u32>(kr, kring_buf_size);
  const bufs = load<u32>(kr, kring_num_bufs);
  let ok = true;
  let frags: u32 = 0;
  let bytes: u32 = 0;
  for (;;) {
    const w = loadSlot(slotAt(ring, j));
    const flags = slotFlags(w);
    if ((flags & NS_BUF_CHANGED) != 0) storeSlotFlags(slotAt(ring, j), flags & ~NS_BUF_CHANGED);
    ok = ok && slotValid(w, bufs, bufSize) && (flags & NS_INDIRECT) == 0 && frags < NETMAP_MAX_FRAGS;
    if (ok) {
      storeFwd(ft + frags * nm_bdg_fwd_size, base + slotIdx(w) * bufSize, slotLen(w), 0, flags);
      frags++;
      bytes += slotLen(w);
    }
    j = j + 1 == n ? 0 : j + 1;
    if ((flags & NS_MOREFRAG) == 0 || j == head) break;
  }
  ok = ok && hasEthernet(ft, frags, load<u32>(load<u32>(kr, kring_port), port_vnet_hdr_len));
  store<u8>(ft, ok ? frags : 0, nm_bdg_fwd_frags);
  if (ok) bump(kr + kring_bytes, bytes);
  else bump(kr + kring_drop_bad, 1);
  return j;
}

/**
 * Whether a packet has its Ethernet header where `destination` looks for it: behind the sender's VirtIO header in the first
 * slot or, if that holds the VirtIO header alone, in the second.
 */
function hasEthernet(ft: usize, frags: u32, hdr: u32): bool {
  const len: u32 = load<u16>(ft, nm_bdg_fwd_len);
  if (len > hdr) return len - hdr >= ETH_HLEN;
  return len == hdr && frags > 1 && <u32>load<u16>(ft + nm_bdg_fwd_size, nm_bdg_fwd_len) >= ETH_HLEN;
}
