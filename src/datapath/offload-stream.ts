/**
 * From the sender's slots to the receiver's buffers as a stream of bytes, whatever the sizes of both: what is read is a
 * packet of `ft`, what is written is one frame after the other, each in slots of its own. State: the domain's `offload`.
 */
import { copyBytes } from './copy';
import {
  kring_buf_base,
  kring_buf_size,
  kring_drop_dst,
  kring_num_bufs,
  kring_num_slots,
  kring_ring,
  NETMAP_FIRST_BUF,
  NS_MOREFRAG,
  NS_RFRAGS_SHIFT,
  nm_bdg_fwd_len,
  nm_bdg_fwd_size,
  nm_bdg_fwd_src,
  OFFLOAD_HDR_BYTES,
  offload_buf_size,
  offload_bufs,
  offload_dst_buf,
  offload_dst_ofs,
  offload_hdr,
  offload_odd,
  offload_src_end,
  offload_src_ft,
  offload_src_ofs,
  offload_sum,
} from './layouts.generated';
import { copySum, foldSum } from './offload-copy';
import { loadSlot, slotAt, slotIdx, storeSlot } from './peer';
import { at, bump } from './private';

/** Reads a packet from its beginning, without the `skip` bytes before it, which are all in its first slot. */
export function openSource(o: usize, ft: usize, frags: u32, skip: u32): void {
  store<u32>(o, <u32>ft, offload_src_ft);
  store<u32>(o, skip, offload_src_ofs);
  store<u32>(o, <u32>ft + frags * nm_bdg_fwd_size, offload_src_end);
}

/** Bytes of a packet. */
export function packetBytes(ft: usize, frags: u32): u32 {
  let len: u32 = 0;
  for (const end = ft + frags * nm_bdg_fwd_size; ft != end; ft += nm_bdg_fwd_size) len += load<u16>(ft, nm_bdg_fwd_len);
  return len;
}

/** Copies a packet's first bytes, at most OFFLOAD_HDR_BYTES, to hdr. The place to read stays where it is. */
export function copyHeaders(o: usize): void {
  let ft: usize = load<u32>(o, offload_src_ft);
  const end: usize = load<u32>(o, offload_src_end);
  let ofs = load<u32>(o, offload_src_ofs);
  for (let have: u32 = 0; ft != end && have < OFFLOAD_HDR_BYTES; ft += nm_bdg_fwd_size, ofs = 0) {
    const there = <u32>load<u16>(ft, nm_bdg_fwd_len) - ofs;
    const n = there < OFFLOAD_HDR_BYTES - have ? there : OFFLOAD_HDR_BYTES - have;
    copyBytes(load<u32>(ft, nm_bdg_fwd_src) + ofs, o + offload_hdr + have, n);
    have += n;
  }
}

/** Passes over `len` bytes of what is read. */
export function skipSource(o: usize, len: u32): void {
  let ft: usize = load<u32>(o, offload_src_ft);
  let ofs = load<u32>(o, offload_src_ofs) + len;
  const end: usize = load<u32>(o, offload_src_end);
  while (ft != end && ofs >= load<u16>(ft, nm_bdg_fwd_len)) {
    ofs -= load<u16>(ft, nm_bdg_fwd_len);
    ft += nm_bdg_fwd_size;
  }
  store<u32>(o, <u32>ft, offload_src_ft);
  store<u32>(o, ofs, offload_src_ofs);
}

/**
 * Takes the buffers of `frags` (at most NETMAP_MAX_FRAGS) slots from j on for the next frame, and begins to write it.
 * @returns 0, or how many slots there are up to and with one that is bad: the frame cannot be written
 */
export function openFrame(o: usize, kr: usize, j: u32, frags: u32): u32 {
  const ring: usize = load<u32>(kr, kring_ring);
  const n = load<u32>(kr, kring_num_slots);
  const base = load<u32>(kr, kring_buf_base);
  const bufSize = load<u32>(kr, kring_buf_size);
  const bufs = load<u32>(kr, kring_num_bufs);
  for (let i: u32 = 0; i < frags; i++) {
    const idx = slotIdx(loadSlot(slotAt(ring, j)));
    if (idx - NETMAP_FIRST_BUF >= bufs - NETMAP_FIRST_BUF) return i + 1;
    store<u32>(o + (i << 2), base + idx * bufSize, offload_bufs);
    j = j + 1 == n ? 0 : j + 1;
  }
  store<u32>(o, bufSize, offload_buf_size);
  seekFrame(o, 0);
  return 0;
}

/** Goes on writing at byte `ofs` of the frame, and begins a new sum. */
export function seekFrame(o: usize, ofs: u32): void {
  const bufSize = load<u32>(o, offload_buf_size);
  store<u32>(o, ofs / bufSize, offload_dst_buf);
  store<u32>(o, ofs % bufSize, offload_dst_ofs);
  store<u32>(o, 0, offload_sum);
  store<u32>(o, 0, offload_odd);
}

/** Address of byte `ofs` of the frame. */
export function frameByte(o: usize, ofs: u32): usize {
  const bufSize = load<u32>(o, offload_buf_size);
  return at(o + offload_bufs, ofs / bufSize) + (ofs % bufSize);
}

/** Writes `len` bytes from `src`, and adds them to the sum. The frame has room for them. */
export function emit(o: usize, src: usize, len: u32): void {
  const bufSize = load<u32>(o, offload_buf_size);
  let buf = load<u32>(o, offload_dst_buf);
  let ofs = load<u32>(o, offload_dst_ofs);
  let sum: u64 = load<u32>(o, offload_sum);
  let odd = load<u32>(o, offload_odd);
  while (len != 0) {
    if (ofs == bufSize) {
      ofs = 0;
      buf++;
    }
    const n = len < bufSize - ofs ? len : bufSize - ofs;
    const part = copySum(src, at(o + offload_bufs, buf) + ofs, n);
    sum += odd == 0 ? part : bswap<u16>(<u16>part);
    odd ^= n & 1;
    ofs += n;
    src += n;
    len -= n;
  }
  store<u32>(o, buf, offload_dst_buf);
  store<u32>(o, ofs, offload_dst_ofs);
  store<u32>(o, foldSum(sum), offload_sum);
  store<u32>(o, odd, offload_odd);
}

/** Writes the next `len` bytes of what is read, which has that many. */
export function emitSource(o: usize, len: u32): void {
  let ft: usize = load<u32>(o, offload_src_ft);
  let ofs = load<u32>(o, offload_src_ofs);
  while (len != 0) {
    const there = <u32>load<u16>(ft, nm_bdg_fwd_len) - ofs;
    const n = len < there ? len : there;
    emit(o, load<u32>(ft, nm_bdg_fwd_src) + ofs, n);
    len -= n;
    ofs += n;
    if (n == there) {
      ft += nm_bdg_fwd_size;
      ofs = 0;
    }
  }
  store<u32>(o, <u32>ft, offload_src_ft);
  store<u32>(o, ofs, offload_src_ofs);
}

/** Fills the slots of a frame of `len` bytes, from j on. Returns the slot after it. */
export function closeFrame(kr: usize, j: u32, len: u32): u32 {
  const ring: usize = load<u32>(kr, kring_ring);
  const n = load<u32>(kr, kring_num_slots);
  const bufSize = load<u32>(kr, kring_buf_size);
  const frags = slotsOf(len, bufSize);
  for (let left = frags; left != 1; left--) {
    storeSlot(slotAt(ring, j), bufSize, (frags << NS_RFRAGS_SHIFT) | NS_MOREFRAG);
    j = j + 1 == n ? 0 : j + 1;
    len -= bufSize;
  }
  storeSlot(slotAt(ring, j), len, frags << NS_RFRAGS_SHIFT);
  return j + 1 == n ? 0 : j + 1;
}

/** Makes the `n` slots from j on empty, as a bad one is among them; the packet is lost. Returns n. */
export function skipSlots(kr: usize, j: u32, n: u32): u32 {
  const ring: usize = load<u32>(kr, kring_ring);
  const slots = load<u32>(kr, kring_num_slots);
  for (let left = n; left != 0; left--) {
    storeSlot(slotAt(ring, j), 0, 0);
    j = j + 1 == slots ? 0 : j + 1;
  }
  bump(kr + kring_drop_dst, 1);
  return n;
}

/** Slots that a frame of `len` bytes takes. */
export function slotsOf(len: u32, bufSize: u32): u32 {
  return len <= bufSize ? 1 : (len + bufSize - 1) / bufSize;
}
