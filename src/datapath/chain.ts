/**
 * The slower way to deliver a packet: of several slots, or to a port whose VirtIO network header is not as long as the
 * sender's. Mirrors nm_vale_flush and bdg_mismatch_datapath (netmap_vale.c, netmap_offloadings.c) without offloads.
 */
import { copyBuffer, copyBytes, storeVnetHdr } from './copy';
import {
  kring_buf_base,
  kring_buf_size,
  kring_bytes,
  kring_drop_dst,
  kring_drop_offload,
  kring_num_bufs,
  kring_num_slots,
  kring_packets,
  kring_ring,
  kring_slots,
  NETMAP_FIRST_BUF,
  NS_MOREFRAG,
  NS_RFRAGS_SHIFT,
  nm_bdg_fwd_frags,
  nm_bdg_fwd_len,
  nm_bdg_fwd_size,
  nm_bdg_fwd_src,
} from './layouts.generated';
import { loadHeader, loadSlot, slotAt, slotIdx, storeSlot } from './peer';
import { bump } from './private';

/** VIRTIO_NET_HDR_F_DATA_VALID: says something about the frame, asks for nothing. */
const DATA_VALID: u64 = 2;

/**
 * Delivers one packet into an rx ring at `tail`, where it has room, and counts it there. Returns the slots used.
 *
 * A bad slot of the receiver is passed over: it and those before it, filled for nothing, go to the receiver as empty
 * slots (len 0, as netmap publishes slots it reserved and did not use), so that the ring goes on.
 */
export function deliverChain(kr: usize, ft: usize, frags: u32, tail: u32, hdr: u32, dstHdr: u32): u32 {
  const ring: usize = load<u32>(kr, kring_ring);
  const n = load<u32>(kr, kring_num_slots);
  const base: usize = load<u32>(kr, kring_buf_base);
  const bufSize = load<u32>(kr, kring_buf_size);
  const bufs = load<u32>(kr, kring_num_bufs);
  const end = ft + frags * nm_bdg_fwd_size;
  const convert = hdr != dstHdr;
  // The sender's header, read once (R5); without one, a header that asks for nothing.
  let header = i64x2.splat(0);
  if (convert && hdr != 0) {
    header = loadHeader(load<u32>(ft, nm_bdg_fwd_src));
    if (dstHdr == 0) {
      if ((i64x2.extract_lane(header, 0) & 0xffff & ~DATA_VALID) != 0) {
        bump(kr + kring_drop_offload, 1);
        return 0;
      }
      // A slot that held the header alone disappears.
      if (load<u16>(ft, nm_bdg_fwd_len) == hdr) {
        ft += nm_bdg_fwd_size;
        frags--;
        hdr = 0;
      }
    }
  }
  let cut: u32 = convert ? hdr : 0;
  let put: u32 = convert ? dstHdr : 0;
  let j = tail;
  let bytes: u32 = 0;
  for (let i = ft; i != end; i += nm_bdg_fwd_size) {
    const src = <usize>load<u32>(i, nm_bdg_fwd_src) + cut;
    const body = <u32>load<u16>(i, nm_bdg_fwd_len) - cut;
    const slot = slotAt(ring, j);
    const idx = slotIdx(loadSlot(slot));
    if (body + put > bufSize) {
      bump(kr + kring_drop_dst, 1);
      return 0;
    }
    j = j + 1 == n ? 0 : j + 1;
    if (idx - NETMAP_FIRST_BUF >= bufs - NETMAP_FIRST_BUF) {
      bump(kr + kring_drop_dst, 1);
      return emptySlots(ring, tail, j, n);
    }
    const dst = base + idx * bufSize;
    if ((cut | put) == 0) {
      copyBuffer(src, dst, body);
    } else {
      if (put != 0) storeVnetHdr(dst, header, put);
      copyBytes(src, dst + put, body);
    }
    storeSlot(slot, body + put, (frags << NS_RFRAGS_SHIFT) | (i + nm_bdg_fwd_size != end ? NS_MOREFRAG : 0));
    bytes += body + put;
    cut = 0;
    put = 0;
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
