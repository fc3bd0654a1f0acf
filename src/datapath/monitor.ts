/**
 * Monitors (netmap_monitor.c; docs/monitors.md): rx rings that get what passes through the rings of another port. A copy
 * monitor gets packets before they are consumed: what a tx ring sends, what arrives in an rx ring. A zero-copy monitor gets
 * buffers after that, when they are released, and gives empty ones for them; the next one gets them when the first releases
 * them, and so on.
 *
 * A ring without monitors costs a look at `mon` and `zmon`, as one word, where it is published. Owner of everything here: the domain's datapath thread.
 */
import { copyBytes } from './copy';
import { publish, rxsync } from './kring';
import {
  domain_mon_words,
  KRING_RUNNING,
  kring_buf_base,
  kring_buf_size,
  kring_bytes,
  kring_dir,
  kring_drop_dst,
  kring_drop_full,
  kring_drop_stopped,
  kring_hwcur,
  kring_hwtail,
  kring_kind,
  kring_mon,
  kring_mon_next_rx,
  kring_mon_next_tx,
  kring_mon_of_rx,
  kring_mon_of_tx,
  kring_mon_tail,
  kring_num_bufs,
  kring_num_slots,
  kring_packets,
  kring_port,
  kring_ring,
  kring_rtail,
  kring_shadow,
  kring_slots,
  kring_state,
  kring_zmon,
  MONITOR_COPY,
  MONITOR_ZCOPY,
  NETMAP_MAX_FRAGS,
  NR_DIR_TX,
  NS_BUF_CHANGED,
  NS_INDIRECT,
  NS_MOREFRAG,
  NS_RFRAGS_SHIFT,
  NS_TXMON,
  port_vnet_hdr_len,
} from './layouts.generated';
import { bufValid, loadSlot, slotAt, slotFlags, slotIdx, slotLen, storeSlot, storeSlotWord } from './peer';
import { at64, bump, put64 } from './private';

const IDX_MASK: u64 = 0xffff_ffff;

/** Shows monitors what a tx ring is about to send: slots hwcur .. to - 1. */
export function monitorSent(d: usize, kr: usize, to: u32): void {
  copySlots(d, kr, load<u32>(kr, kring_hwcur), to);
}

/** Before a ring with monitors is published: if hwtail moved, slots came back to a tx ring, or arrived in an rx ring. */
export function monitorMoved(d: usize, kr: usize): void {
  if (load<u32>(kr, kring_dir) != NR_DIR_TX) {
    monitorArrived(d, kr);
  } else if (load<u32>(kr, kring_zmon) != 0 && load<u32>(kr, kring_rtail) != load<u32>(kr, kring_hwtail)) {
    const n = load<u32>(kr, kring_num_slots);
    monitorReleased(d, kr, after(load<u32>(kr, kring_rtail), n), after(load<u32>(kr, kring_hwtail), n));
  }
}

/** Shows copy monitors what arrived in an rx ring since the last time. */
export function monitorArrived(d: usize, kr: usize): void {
  const from = <u32>load<u16>(kr, kring_mon_tail);
  const to = load<u32>(kr, kring_hwtail);
  store<u16>(kr, to, kring_mon_tail);
  if (from != to && load<u32>(kr, kring_mon) != 0) copySlots(d, kr, from, to);
}

function after(i: u32, n: u32): u32 {
  return i + 1 == n ? 0 : i + 1;
}

/** The copy monitor after `m` on the list of a ring of this direction. */
export function nextMonitor(m: usize, dir: u32): usize {
  return dir == NR_DIR_TX ? load<u32>(m, kring_mon_next_tx) : load<u32>(m, kring_mon_next_rx);
}

/** Slots of the packet that begins at slot i, at most to `to`. */
function packetSlots(ring: usize, i: u32, to: u32, n: u32): u32 {
  let slots: u32 = 0;
  let flags: u32 = 0;
  do {
    flags = slotFlags(loadSlot(slotAt(ring, i)));
    slots++;
    i = after(i, n);
  } while ((flags & NS_MOREFRAG) != 0 && i != to);
  return slots;
}

/** Takes a packet's slots, once each, into the domain's `mon_words`. False if one is bad, or they are too many. */
function takePacket(d: usize, kr: usize, i: u32, slots: u32): bool {
  if (slots > NETMAP_MAX_FRAGS) return false;
  const ring: usize = load<u32>(kr, kring_ring);
  const n = load<u32>(kr, kring_num_slots);
  const bufs = load<u32>(kr, kring_num_bufs);
  const bufSize = load<u32>(kr, kring_buf_size);
  let ok = true;
  for (let k: u32 = 0; k < slots; k++) {
    const w = loadSlot(slotAt(ring, i));
    ok = ok && bufValid(slotIdx(w), bufs) && slotLen(w) <= bufSize && (slotFlags(w) & NS_INDIRECT) == 0;
    put64(d + domain_mon_words, k, w);
    i = after(i, n);
  }
  return ok;
}

/** Copies slots from .. to - 1 of a ring to each of its copy monitors, packet by packet. */
function copySlots(d: usize, kr: usize, from: u32, to: u32): void {
  const dir = load<u32>(kr, kring_dir);
  const ring: usize = load<u32>(kr, kring_ring);
  const n = load<u32>(kr, kring_num_slots);
  const hdr = load<u32>(load<u32>(kr, kring_port), port_vnet_hdr_len);
  const first: usize = load<u32>(kr, kring_mon);
  for (let m = first; m != 0; m = nextMonitor(m, dir)) if (load<u32>(m, kring_state) == KRING_RUNNING) rxsync(m);
  for (let i = from; i != to; ) {
    const slots = packetSlots(ring, i, to, n);
    const good = takePacket(d, kr, i, slots);
    i = i + slots >= n ? i + slots - n : i + slots;
    if (!good) continue;
    // Monitors see frames without the port's VirtIO header, which may fill a slot of its own.
    const len = slotLen(at64(d + domain_mon_words, 0));
    const skip: u32 = len == hdr ? 1 : 0;
    if (len < hdr || skip == slots) continue;
    for (let m = first; m != 0; m = nextMonitor(m, dir)) {
      copyPacket(d, kr, m, skip, slots, skip == 0 ? hdr : 0, dir == NR_DIR_TX ? NS_TXMON : 0);
    }
  }
  for (let m = first; m != 0; m = nextMonitor(m, dir)) if (load<u32>(m, kring_state) == KRING_RUNNING) publish(d, m);
}

/** Whether a packet of so many slots goes into a monitor's ring; counted there if not. */
function hasRoom(m: usize, slots: u32): bool {
  if (load<u32>(m, kring_state) != KRING_RUNNING) {
    bump(m + kring_drop_stopped, 1);
    return false;
  }
  const n = load<u32>(m, kring_num_slots);
  const hwcur = load<u32>(m, kring_hwcur);
  const hwtail = load<u32>(m, kring_hwtail);
  const space = hwcur > hwtail ? hwcur - hwtail - 1 : n - 1 - hwtail + hwcur;
  if (slots <= space) return true;
  bump(m + kring_drop_full, 1);
  return false;
}

/**
 * Copies a packet, the words of whose slots are in `mon_words` from `begin` to `end`, into a monitor's ring; what does not fit its
 * buffers is cut off. @param ofs bytes to leave out of the first slot
 */
function copyPacket(d: usize, kr: usize, m: usize, begin: u32, end: u32, ofs: u32, flag: u32): void {
  const slots = end - begin;
  if (!hasRoom(m, slots)) return;
  const from: usize = load<u32>(kr, kring_buf_base);
  const fromSize = load<u32>(kr, kring_buf_size);
  const base: usize = load<u32>(m, kring_buf_base);
  const bufSize = load<u32>(m, kring_buf_size);
  const bufs = load<u32>(m, kring_num_bufs);
  const ring: usize = load<u32>(m, kring_ring);
  const n = load<u32>(m, kring_num_slots);
  const start = load<u32>(m, kring_hwtail);
  let j = start;
  let bytes: u32 = 0;
  let ok = true;
  for (let k = begin; k != end; k++) {
    const slot = slotAt(ring, j);
    const idx = slotIdx(loadSlot(slot));
    const w = at64(d + domain_mon_words, k);
    const at: u32 = k == begin ? ofs : 0;
    const len = min(slotLen(w) - at, bufSize);
    ok = ok && bufValid(idx, bufs);
    if (ok) copyBytes(from + slotIdx(w) * fromSize + at, base + idx * bufSize, len);
    storeSlot(slot, len, (slots << NS_RFRAGS_SHIFT) | flag | (k + 1 != end ? NS_MOREFRAG : 0));
    bytes += len;
    j = after(j, n);
  }
  delivered(m, start, j, slots, bytes, ok);
}

/** Counts a packet in slots start .. end - 1 of a monitor's ring; if one of them was bad, they are empty. */
function delivered(m: usize, start: u32, end: u32, slots: u32, bytes: u32, ok: bool): void {
  const n = load<u32>(m, kring_num_slots);
  store<u32>(m, end, kring_hwtail);
  if (!ok) {
    for (let j = start; j != end; j = after(j, n)) storeSlot(slotAt(load<u32>(m, kring_ring), j), 0, 0);
    bump(m + kring_drop_dst, 1);
    return;
  }
  bump(m + kring_packets, 1);
  bump(m + kring_slots, slots);
  bump(m + kring_bytes, bytes);
}

/**
 * Exchanges the buffers of slots from .. to - 1, which their user released, with those of free slots of the ring's
 * zero-copy monitor: both rings are in one region.
 */
export function monitorReleased(d: usize, kr: usize, from: u32, to: u32): void {
  let m: usize = load<u32>(kr, kring_zmon);
  // One whose rings are stopped is passed over.
  while (load<u32>(m, kring_state) != KRING_RUNNING && load<u32>(m, kring_zmon) != 0) m = load<u32>(m, kring_zmon);
  const ring: usize = load<u32>(kr, kring_ring);
  const n = load<u32>(kr, kring_num_slots);
  const running = load<u32>(m, kring_state) == KRING_RUNNING;
  if (running) rxsync(m);
  for (let i = from; i != to; ) {
    const slots = packetSlots(ring, i, to, n);
    if (takePacket(d, kr, i, slots) && slotLen(at64(d + domain_mon_words, 0)) != 0 && hasRoom(m, slots)) {
      swapPacket(d, kr, m, i, slots);
    }
    i = i + slots >= n ? i + slots - n : i + slots;
  }
  if (running) publish(d, m);
}

function swapPacket(d: usize, kr: usize, m: usize, i: u32, slots: u32): void {
  const from: usize = load<u32>(kr, kring_ring);
  const fromSlots = load<u32>(kr, kring_num_slots);
  const shadow: usize = load<u32>(kr, kring_shadow);
  // A monitor of a monitor shows the same direction as the first.
  const known: u32 = <u32>load<u16>(kr, kring_kind) >= MONITOR_COPY ? NS_TXMON : 0;
  const flag: u32 = load<u32>(kr, kring_dir) == NR_DIR_TX ? NS_TXMON : 0;
  const ring: usize = load<u32>(m, kring_ring);
  const n = load<u32>(m, kring_num_slots);
  const bufs = load<u32>(m, kring_num_bufs);
  const start = load<u32>(m, kring_hwtail);
  let j = start;
  let bytes: u32 = 0;
  let ok = true;
  for (let k: u32 = 0; k < slots; k++) {
    const slot = slotAt(ring, j);
    const mine = slotIdx(loadSlot(slot));
    const w = at64(d + domain_mon_words, k);
    ok = ok && bufValid(mine, bufs);
    if (ok) {
      const flags = (slots << NS_RFRAGS_SHIFT) | flag | (slotFlags(w) & known) | (k + 1 != slots ? NS_MOREFRAG : 0);
      storeSlotWord(slot, (w & 0xffff_ffff_ffff) | ((<u64>flags) << 48));
      const back = (w & ~IDX_MASK) | mine | ((<u64>NS_BUF_CHANGED) << 48);
      storeSlotWord(slotAt(from, i), back);
      if (shadow != 0) put64(shadow, i, back);
      bytes += slotLen(w);
    }
    i = after(i, fromSlots);
    j = after(j, n);
  }
  delivered(m, start, j, slots, bytes, ok);
}

/** Makes a ring of a monitor, whose kind is set, show what passes through `kr`. */
export function monitorLink(m: usize, kr: usize): void {
  const tx = load<u32>(kr, kring_dir) == NR_DIR_TX;
  if (<u32>load<u16>(m, kring_kind) == MONITOR_ZCOPY) {
    let last = kr;
    while (load<u32>(last, kring_zmon) != 0) last = load<u32>(last, kring_zmon);
    if (last == m) return; // behind another monitor of this port, which shows it both directions
    store<u32>(last, <u32>m, kring_zmon);
    setMonitorOf(m, last, tx && last == kr);
    return;
  }
  if (load<u32>(kr, kring_mon) == 0) store<u16>(kr, load<u32>(kr, kring_hwtail), kring_mon_tail);
  if (tx) store<u32>(m, load<u32>(kr, kring_mon), kring_mon_next_tx);
  else store<u32>(m, load<u32>(kr, kring_mon), kring_mon_next_rx);
  setMonitorOf(m, kr, tx);
  store<u32>(kr, <u32>m, kring_mon);
}

function setMonitorOf(m: usize, kr: usize, tx: bool): void {
  if (tx) store<u32>(m, <u32>kr, kring_mon_of_tx);
  else store<u32>(m, <u32>kr, kring_mon_of_rx);
}

/** Ends `monitorLink` for all rings that `m` shows. */
export function monitorUnlink(m: usize): void {
  const tx: usize = load<u32>(m, kring_mon_of_tx);
  const rx: usize = load<u32>(m, kring_mon_of_rx);
  if (<u32>load<u16>(m, kring_kind) == MONITOR_ZCOPY) {
    const next: usize = load<u32>(m, kring_zmon);
    if (tx != 0) store<u32>(tx, <u32>next, kring_zmon);
    if (rx != 0) store<u32>(rx, <u32>next, kring_zmon);
    if (next != 0) {
      setMonitorOf(next, tx, true);
      setMonitorOf(next, rx, false);
    }
    store<u32>(m, 0, kring_zmon);
  } else {
    if (tx != 0) removeMonitor(tx, m);
    if (rx != 0) removeMonitor(rx, m);
  }
  setMonitorOf(m, 0, true);
  setMonitorOf(m, 0, false);
}

/** Takes a copy monitor off a ring's list. */
function removeMonitor(kr: usize, m: usize): void {
  const dir = load<u32>(kr, kring_dir);
  const next = nextMonitor(m, dir);
  let before: usize = load<u32>(kr, kring_mon);
  if (before == m) {
    store<u32>(kr, <u32>next, kring_mon);
    return;
  }
  while (nextMonitor(before, dir) != m) before = nextMonitor(before, dir);
  if (dir == NR_DIR_TX) store<u32>(before, <u32>next, kring_mon_next_tx);
  else store<u32>(before, <u32>next, kring_mon_next_rx);
}

/** The port of a ring goes away: its monitors see nothing any more, until they are linked again. */
export function monitorForget(kr: usize): void {
  while (load<u32>(kr, kring_zmon) != 0) monitorUnlink(load<u32>(kr, kring_zmon));
  while (load<u32>(kr, kring_mon) != 0) monitorUnlink(load<u32>(kr, kring_mon));
}
