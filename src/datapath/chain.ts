/**
 * Delivers a packet of several slots, slot by slot, to a port whose VirtIO network header is as long as the sender's.
 * Mirrors nm_vale_flush (netmap_vale.c). For other ports: offload.ts.
 */
import { copyBytes, storeVnetHdr } from './copy';
import {
  kring_buf_base,
  kring_buf_size,
  kring_bytes,
  kring_drop_dst,
  kring_num_bufs,
  kring_num_slots,
  kring_packets,
  kring_ring,
  kring_slots,
  NS_MOREFRAG,
  NS_RFRAGS_SHIFT,
  nm_bdg_fwd_frags,
  nm_bdg_fwd_len,
  nm_bdg_fwd_size,
  nm_bdg_fwd_src,
} from './layouts.generated';
import { bufValid, loadSlot, slotAt, slotIdx, storeSlot } from './peer';
import { loadVnet } from './offload-vnet';
import { bump } from './private';

/**
 * Delivers one packet into an rx ring at `tail`, where it has room, and counts it there. Returns the slots used.
 *
 * A bad slot of the receiver is passed over: it and those before it, filled for nothing, go to the receiver as empty
 * slots (len 0, as netmap publishes slots it reserved and did not use), so that the ring goes on.
 */
export function deliverChain(d: usize, kr: usize, ft: usize, frags: u32, tail: u32, hdr: u32): u32 {
  const ring: usize = load<u32>(kr, kring_ring);
  const n = load<u32>(kr, kring_num_slots);
  const base: usize = load<u32>(kr, kring_buf_base);
  const bufSize = load<u32>(kr, kring_buf_size);
  const bufs = load<u32>(kr, kring_num_bufs);
  const end = ft + frags * nm_bdg_fwd_size;
  let j = tail;
  let bytes: u32 = 0;
  for (let i = ft; i != end; i += nm_bdg_fwd_size) {
    const len: u32 = load<u16>(i, nm_bdg_fwd_len);
    const slot = slotAt(ring, j);
    const idx = slotIdx(loadSlot(slot));
    if (len > bufSize) {
      bump(kr + kring_drop_dst, 1);
      return 0;
    }
    j = j + 1 == n ? 0 : j + 1;
    if (!bufValid(idx, bufs)) {
      bump(kr + kring_drop_dst, 1);
      return emptySlots(ring, tail, j, n);
    }
    const dst = base + idx * bufSize;
    copyBytes(load<u32>(i, nm_bdg_fwd_src), dst, len);
    if (hdr != 0 && i == ft) storeVnetHdr(dst, loadVnet(d, ft), hdr);
    storeSlot(slot, len, (frags << NS_RFRAGS_SHIFT) | (i + nm_bdg_fwd_size != end ? NS_MOREFRAG : 0));
    bytes += len;
  }
  bump(kr + kring_packets, 1);
  bump(kr + kring_slots, frags);
  bump(kr + kring_bytes, bytes);
  return frags;
}

/** Makes slots from .. to - 1 empty. Returns how many they are. */
function emptySlots(ring: usize, from: u32, to: u32, n: u32): u32 {
  let used: u32 = 0;
  for (; from != to; from = from + 1 == n ? 0 : from + 1) {
    storeSlot(slotAt(ring, from), 0, 0);
    used++;
  }
  return used;
}
