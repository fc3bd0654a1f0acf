/**
 * Delivers a packet to a port whose VirtIO network header is not as long as the sender's: bdg_mismatch_datapath of
 * netmap_offloadings.c. A header is put in front, cut off, or made longer or shorter; cutting it off means doing what it
 * asks for: pending checksums are completed, TCP segments cut to gso_size. docs/interface.md says where this differs
 * from netmap.
 */
import {
  domain_offload,
  kring_buf_size,
  kring_bytes,
  kring_drop_dst,
  kring_drop_full,
  kring_packets,
  kring_slots,
  NETMAP_MAX_FRAGS,
  nm_bdg_fwd_frags,
  offload_hdr,
  offload_odd,
  offload_sum,
} from './layouts.generated';
import { storeFrameByte } from './offload-copy';
import { segment } from './offload-segment';
import {
  closeFrame,
  emit,
  emitSource,
  frameByte,
  openFrame,
  openSource,
  packetBytes,
  skipSlots,
  slotsOf,
} from './offload-stream';
import { loadVnet, vnetCsumOffset, vnetCsumStart, vnetGsoType, vnetNeedsCsum } from './offload-vnet';
import { bump, drop } from './private';

/**
 * Delivers one packet into an rx ring at `tail`, or counts there why not. Returns the slots used.
 *
 * A bad slot of the receiver is passed over: it and those before it, taken for nothing, go to the receiver as empty
 * slots (len 0, as netmap publishes slots it reserved and did not use), so that the ring goes on.
 * @param space free slots of the ring @param hdr, dstHdr bytes of the sender's and the receiver's header, not equal
 */
export function deliverOffload(d: usize, kr: usize, ft: usize, tail: u32, space: u32, hdr: u32, dstHdr: u32): u32 {
  const o = d + domain_offload;
  const frags: u32 = load<u8>(ft, nm_bdg_fwd_frags);
  const header = hdr != 0 ? loadVnet(d, ft) : i64x2.splat(0);
  const len = packetBytes(ft, frags) - hdr;
  openSource(o, ft, frags, hdr);
  if (dstHdr == 0 && vnetGsoType(header) != 0) return segment(o, kr, header, len, tail, space);
  const total = dstHdr + len;
  const slots = slotsOf(total, load<u32>(kr, kring_buf_size));
  if (slots > NETMAP_MAX_FRAGS) return drop(kr + kring_drop_dst);
  if (slots > space) return drop(kr + kring_drop_full);
  const bad = openFrame(o, kr, tail, slots);
  if (bad != 0) return skipSlots(kr, tail, bad);
  if (dstHdr != 0) {
    // struct virtio_net_hdr_mrg_rxbuf ends with num_buffers, which is 0 here.
    v128.store(o, header, offload_hdr);
    store<u16>(o + 10, 0, offload_hdr);
    emit(o, o + offload_hdr, dstHdr);
    emitSource(o, len);
  } else if (vnetNeedsCsum(header)) {
    const start = vnetCsumStart(header);
    emitSource(o, start);
    store<u32>(o, 0, offload_sum);
    store<u32>(o, 0, offload_odd);
    emitSource(o, len - start);
    storeCheck(o, start + vnetCsumOffset(header), load<u32>(o, offload_sum));
  } else {
    emitSource(o, len);
  }
  closeFrame(kr, tail, total);
  bump(kr + kring_packets, 1);
  bump(kr + kring_slots, slots);
  bump(kr + kring_bytes, total);
  return slots;
}

/** Finishes a checksum in the frame, at any offset. All ones instead of 0, which for UDP means "no checksum". */
function storeCheck(o: usize, ofs: u32, sum: u32): void {
  const check = (~sum & 0xffff) == 0 ? 0xffff : ~sum & 0xffff;
  storeFrameByte(frameByte(o, ofs), check & 0xff);
  storeFrameByte(frameByte(o, ofs + 1), check >> 8);
}
