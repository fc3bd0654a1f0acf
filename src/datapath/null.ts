/**
 * Null ports: a sink and a source, for measuring everything but the switching. netmap's own (netmap_null.c) do nothing at
 * all; here tx takes what is sent, and rx gives frames of NULL_FRAME_LEN bytes, whatever their buffers hold, as fast as slots are released.
 */
import { isWatched, publish, rxsync, setArmed, txsyncPrologue } from './kring';
import {
  kring_bytes,
  kring_copies,
  kring_hwcur,
  kring_hwtail,
  kring_mon,
  kring_num_slots,
  kring_packets,
  kring_rhead,
  kring_ring,
  kring_slots,
  NS_MOREFRAG,
  NS_RFRAGS_SHIFT,
  NULL_FRAME_LEN,
} from './layouts.generated';
import { monitorMoved, monitorSent } from './monitor';
import { loadSlot, slotAt, slotFlags, slotLen, storeSlot } from './peer';
import { bump } from './private';

/** Takes slots hwcur .. rhead - 1 of a running tx ring. Returns how many. */
export function nullTxsync(d: usize, kr: usize): u32 {
  return sinkTxsync(d, kr, kring_copies);
}

/** The same; packets are counted in `packets` and in another counter, given by its offset. */
export function sinkTxsync(d: usize, kr: usize, counter: usize): u32 {
  if (!txsyncPrologue(kr)) return 0;
  setArmed(kr, 0);
  if (load<u32>(kr, kring_mon) != 0) monitorSent(d, kr, load<u32>(kr, kring_rhead));
  const n = load<u32>(kr, kring_num_slots);
  const ring: usize = load<u32>(kr, kring_ring);
  const head = load<u32>(kr, kring_rhead);
  let slots: u32 = 0;
  let packets: u32 = 0;
  let bytes: u32 = 0;
  for (let k = load<u32>(kr, kring_hwcur); k != head; k = k + 1 == n ? 0 : k + 1) {
    const w = loadSlot(slotAt(ring, k));
    slots++;
    bytes += slotLen(w);
    if ((slotFlags(w) & NS_MOREFRAG) == 0) packets++;
  }
  store<u32>(kr, head, kring_hwcur);
  store<u32>(kr, head == 0 ? n - 1 : head - 1, kring_hwtail);
  count(kr, slots, packets, bytes);
  bump(kr + counter, packets);
  if (isWatched(kr)) monitorMoved(d, kr);
  publish(d, kr);
  return slots;
}

/** Fills the slots of a running rx ring that its application released. Returns how many. */
export function nullRxsync(d: usize, kr: usize): u32 {
  rxsync(kr);
  const n = load<u32>(kr, kring_num_slots);
  const hwcur = load<u32>(kr, kring_hwcur);
  const end = hwcur == 0 ? n - 1 : hwcur - 1;
  const ring: usize = load<u32>(kr, kring_ring);
  let slots: u32 = 0;
  for (let k = load<u32>(kr, kring_hwtail); k != end; k = k + 1 == n ? 0 : k + 1) {
    storeSlot(slotAt(ring, k), NULL_FRAME_LEN, 1 << NS_RFRAGS_SHIFT);
    slots++;
  }
  if (slots != 0) setArmed(kr, 0);
  store<u32>(kr, end, kring_hwtail);
  count(kr, slots, slots, slots * NULL_FRAME_LEN);
  if (isWatched(kr)) monitorMoved(d, kr);
  publish(d, kr);
  return slots;
}

function count(kr: usize, slots: u32, packets: u32, bytes: u32): void {
  bump(kr + kring_slots, slots);
  bump(kr + kring_packets, packets);
  bump(kr + kring_bytes, bytes);
}
