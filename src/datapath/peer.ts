/**
 * Memory that a peer can write: slots, CSB entries, frames. Nothing outside this file and copy.ts touches it (the build
 * checks that), and here every word is read by one load and handed out as a value (R5): what is checked is what is used.
 *
 * CSB words are read and written by (sequentially consistent) atomics, so these functions also are the barriers of the
 * protocol, on this side: slots and frames, by plain accesses, stay between them. 32-bit atomics on an unmapped page end the process instead of trapping:
 * addresses come from the kring, where control code put them, and from checked indexes only.
 *
 * Mirrors net/netmap.h (netmap_slot), net/netmap_virt.h (nm_csb_atok, nm_csb_ktoa).
 */
import {
  NETMAP_FIRST_BUF,
  netmap_ring_size,
  netmap_slot_buf_idx,
  netmap_slot_flags,
  netmap_slot_len,
  netmap_slot_size,
  nm_csb_atok_appl_need_kick,
  nm_csb_atok_cur,
  nm_csb_atok_head,
  nm_csb_atok_sync_flags,
  nm_csb_ktoa_hwcur,
  nm_csb_ktoa_hwtail,
  nm_csb_ktoa_kern_need_kick,
} from './layouts.generated';

export const SLOT_BYTES: u32 = netmap_slot_size;

/** Address of slot i of the ring at `ring`. */
export function slotAt(ring: usize, i: u32): usize {
  return ring + netmap_ring_size + i * SLOT_BYTES;
}

/** How many slots lie between two addresses. */
export function slotsBetween(from: usize, to: usize): u32 {
  return <u32>(to - from) / SLOT_BYTES;
}

/** Whether a slot's buf_idx is one that may be used, of a pool of `bufs` buffers. */
export function bufValid(idx: u32, bufs: u32): bool {
  return idx - NETMAP_FIRST_BUF < bufs - NETMAP_FIRST_BUF;
}

/** buf_idx, len and flags of a slot, by one load; taken apart by `slotIdx`, `slotLen`, `slotFlags`. */
export function loadSlot(slot: usize): u64 {
  return load<u64>(slot, netmap_slot_buf_idx);
}

export function slotIdx(w: u64): u32 {
  return <u32>w;
}

export function slotLen(w: u64): u32 {
  return <u32>(w >> 32) & 0xffff;
}

export function slotFlags(w: u64): u32 {
  return <u32>(w >> 48);
}

/** len, and flags above it. */
export function slotLenFlags(w: u64): u32 {
  return <u32>(w >> 32);
}

/** Fills a slot the host owns; its buf_idx stays. One store: len and flags are neighbours. */
export function storeSlot(slot: usize, len: u32, flags: u32): void {
  store<u32>(slot, len | (flags << 16), netmap_slot_len);
}

/** Writes buf_idx, len and flags of a slot the host owns: how slots go from one ring to another. */
export function storeSlotWord(slot: usize, w: u64): void {
  store<u64>(slot, w, netmap_slot_buf_idx);
}

/** Writes the flags of a slot the host owns. */
export function storeSlotFlags(slot: usize, flags: u32): void {
  store<u16>(slot, <u16>flags, netmap_slot_flags);
}

/** The first 16 bytes of a frame, or of a VirtIO network header, by one load. */
export function loadHeader(p: usize): v128 {
  return v128.load(p);
}

/** Words of a frame's headers. */
export function loadFrame8(p: usize): u32 {
  return load<u8>(p);
}

export function loadFrame16(p: usize): u32 {
  return load<u16>(p);
}

export function loadFrame32(p: usize): u32 {
  return load<u32>(p);
}

export function loadFrame64(p: usize): u64 {
  return load<u64>(p);
}

/** Application's head. Pairs with its wmb between cur and head: read before `loadCur` (R6). */
export function loadHead(atok: usize): u32 {
  return atomic.load<u32>(atok, nm_csb_atok_head);
}

export function loadCur(atok: usize): u32 {
  return atomic.load<u32>(atok, nm_csb_atok_cur);
}

/** Whether the application wants an interrupt. Pairs with its barrier between this word and reading hwtail (R13). */
export function loadApplNeedKick(atok: usize): u32 {
  return atomic.load<u32>(atok, nm_csb_atok_appl_need_kick);
}

/** CREATE only; afterwards the host never writes atok. */
export function storeAtok(atok: usize, head: u32, cur: u32): void {
  atomic.store<u32>(atok, head, nm_csb_atok_head);
  atomic.store<u32>(atok, cur, nm_csb_atok_cur);
  atomic.store<u32>(atok, 1, nm_csb_atok_appl_need_kick);
  atomic.store<u32>(atok, 1, nm_csb_atok_sync_flags);
}

/** The application's side, played for the host's own ports: slots written before are visible before head. */
export function storeCursor(atok: usize, head: u32): void {
  atomic.store<u32>(atok, head, nm_csb_atok_cur);
  atomic.store<u32>(atok, head, nm_csb_atok_head);
}

/** Slots written before are visible before hwcur, hwcur before hwtail (R6). The last store is a full barrier (R13). */
export function storeKtoa(ktoa: usize, hwcur: u32, hwtail: u32): void {
  atomic.store<u32>(ktoa, hwcur, nm_csb_ktoa_hwcur);
  atomic.store<u32>(ktoa, hwtail, nm_csb_ktoa_hwtail);
}

/** Also a full barrier: heads read later are newer than the arming (R12). */
export function storeKernNeedKick(ktoa: usize, value: u32): void {
  atomic.store<u32>(ktoa, value, nm_csb_ktoa_kern_need_kick);
}

/** CREATE only: what the application put there before. */
export function loadKernNeedKick(ktoa: usize): u32 {
  return atomic.load<u32>(ktoa, nm_csb_ktoa_kern_need_kick);
}
