/**
 * Pipes (netmap_pipe.c; docs/pipes.md): a tx ring and the rx ring at the other end have the same slots, and slot k is in
 * the hands of one of the two sides: the receiver's from its hwcur to the sender's hwcur, the sender's otherwise. Sending
 * copies the slot forth, releasing copies it back; nothing is ever dropped (R10). `shadow` keeps what was exchanged last.
 *
 * Owner of everything here: the domain's datapath thread. A frozen ring belongs to control code for that time.
 */
import { isWatched, publish, rxReady, rxsync, setArmed, txsyncPrologue } from './kring';
import {
  KRING_FROZEN,
  KRING_RUNNING,
  KRING_STOPPED,
  kring_atok,
  kring_bytes,
  kring_chain_bad,
  kring_copies,
  kring_dir,
  kring_drop_bad,
  kring_faulty,
  kring_hwcur,
  kring_hwtail,
  kring_mon,
  kring_num_bufs,
  kring_num_slots,
  kring_buf_size,
  kring_packets,
  kring_peer,
  kring_rcur,
  kring_repairs,
  kring_rhead,
  kring_ring,
  kring_shadow,
  kring_slots,
  kring_state,
  kring_zmon,
  NR_DIR_TX,
  NS_BUF_CHANGED,
  NS_INDIRECT,
  NS_MOREFRAG,
} from './layouts.generated';
import { monitorMoved, monitorSent } from './monitor';
import {
  bufValid,
  loadCur,
  loadHead,
  loadSlot,
  SLOT_BYTES,
  slotAt,
  slotFlags,
  slotIdx,
  slotLen,
  slotsBetween,
  storeSlot,
  storeSlotFlags,
  storeSlotWord,
} from './peer';
import { at64, bump, put64 } from './private';

const IDX_MASK: u64 = 0xffff_ffff;
/** Flags of a slot that is not a packet of its own. */
const NS_SLOW: u32 = NS_MOREFRAG | NS_INDIRECT;

/** Hands slots hwcur .. rhead - 1 of a running tx ring to the other end. Returns how many. */
export function pipeTxsync(d: usize, tx: usize): u32 {
  const rx: usize = load<u32>(tx, kring_peer);
  if (load<u32>(rx, kring_state) == KRING_FROZEN || !txsyncPrologue(tx)) return 0;
  setArmed(tx, 0);
  if (load<u32>(tx, kring_mon) != 0) monitorSent(d, tx, load<u32>(tx, kring_rhead));
  const n = load<u32>(tx, kring_num_slots);
  const head = load<u32>(tx, kring_rhead);
  const from: usize = load<u32>(tx, kring_ring);
  const to: usize = load<u32>(rx, kring_ring);
  const shadow: usize = load<u32>(tx, kring_shadow);
  const bufs = load<u32>(tx, kring_num_bufs);
  const bufSize = load<u32>(tx, kring_buf_size);
  const first = load<u32>(tx, kring_hwcur);
  let k = first;
  /** Where the packet that is not yet whole begins. */
  let tail = load<u32>(rx, kring_hwtail);
  let bad = load<u32>(tx, kring_chain_bad);
  let packets: u32 = 0;
  let bytes: u32 = 0;
  while (k != head) {
    if (k == tail) {
      const ahead = sendPackets(tx, rx, k, k < head ? head : n) - k;
      packets += ahead;
      k = k + ahead == n ? 0 : k + ahead;
      tail = k;
      if (k == head) break;
    }
    const src = slotAt(from, k);
    const dst = slotAt(to, k);
    let w = loadSlot(src);
    const flags = slotFlags(w);
    if ((flags & NS_BUF_CHANGED) != 0) storeSlotFlags(src, flags & ~NS_BUF_CHANGED);
    const known = bufValid(slotIdx(w), bufs);
    const next = k + 1 == n ? 0 : k + 1;
    const last = (flags & NS_MOREFRAG) == 0 || distance(tail, next, n) == n - 1;
    if (!known || slotLen(w) > bufSize || (flags & NS_INDIRECT) != 0) {
      // What cannot be sent goes over as an empty slot, with the buffer that was there last if this one does not exist.
      w = known ? w & IDX_MASK : at64(shadow, k) & IDX_MASK;
      bad = 1;
    } else if (last && (flags & NS_MOREFRAG) != 0) {
      w &= ~((<u64>NS_MOREFRAG) << 48);
    }
    storeSlotWord(dst, w);
    put64(shadow, k, w);
    if (last) {
      if (bad != 0) {
        emptyPacket(to, shadow, tail, next, n);
        bump(tx + kring_drop_bad, 1);
        bad = 0;
      } else {
        packets++;
        bytes += tail == k ? slotLen(w) : packetBytes(shadow, tail, next, n);
      }
      tail = next;
    }
    k = next;
  }
  store<u32>(tx, k, kring_hwcur);
  store<u32>(tx, bad, kring_chain_bad);
  store<u32>(rx, tail, kring_hwtail);
  const slots = distance(first, k, n);
  bump(tx + kring_packets, packets);
  bump(tx + kring_copies, packets);
  bump(tx + kring_slots, slots);
  bump(tx + kring_bytes, bytes);
  bump(rx + kring_packets, packets);
  bump(rx + kring_slots, slots);
  bump(rx + kring_bytes, bytes);
  publish(d, tx);
  if (isWatched(rx)) monitorMoved(d, rx);
  if (load<u32>(rx, kring_state) == KRING_RUNNING) publish(d, rx);
  return slots;
}

/**
 * Hands over slots k .. stop - 1 of a tx ring, as far as each is a good packet of its own. Returns the first that is not, or
 * `stop`.
 */
function sendPackets(tx: usize, rx: usize, k: u32, stop: u32): u32 {
  const ring: usize = load<u32>(tx, kring_ring);
  const by = <usize>load<u32>(rx, kring_ring) - ring;
  const bufs = load<u32>(tx, kring_num_bufs);
  const bufSize = load<u32>(tx, kring_buf_size);
  const first = slotAt(ring, k);
  const end = slotAt(ring, stop);
  let record: usize = load<u32>(tx, kring_shadow) + k * 8;
  let bytes: u32 = 0;
  let slot = first;
  for (; slot != end; slot += SLOT_BYTES, record += 8) {
    const w = loadSlot(slot);
    if ((slotFlags(w) & NS_SLOW) != 0) break;
    if (!bufValid(slotIdx(w), bufs)) break;
    if (slotLen(w) > bufSize) break;
    bytes += slotLen(w);
    exchange(slot, by, record, w);
  }
  bump(tx + kring_bytes, bytes);
  bump(rx + kring_bytes, bytes);
  return k + slotsBetween(first, slot);
}

/** Copies what a slot holds to the slot `by` bytes from it, in the peer's ring, and records it. */
function exchange(slot: usize, by: usize, record: usize, w: u64): void {
  if ((slotFlags(w) & NS_BUF_CHANGED) != 0) storeSlotFlags(slot, slotFlags(w) & ~NS_BUF_CHANGED);
  storeSlotWord(slot + by, w);
  put64(record, 0, w);
}

/** Slots from a to b, in ring order. */
function distance(a: u32, b: u32, n: u32): u32 {
  return b >= a ? b - a : b + n - a;
}

/** Makes the slots of a packet that cannot be sent empty; their buffers go over all the same. */
function emptyPacket(to: usize, shadow: usize, from: u32, end: u32, n: u32): void {
  for (let k = from; k != end; k = k + 1 == n ? 0 : k + 1) {
    const w = at64(shadow, k) & IDX_MASK;
    storeSlot(slotAt(to, k), 0, 0);
    put64(shadow, k, w);
  }
}

function packetBytes(shadow: usize, from: u32, end: u32, n: u32): u32 {
  let bytes: u32 = 0;
  for (let k = from; k != end; k = k + 1 == n ? 0 : k + 1) bytes += slotLen(at64(shadow, k));
  return bytes;
}

/** Gives the slots that the application of a running rx ring released back to the sender. Returns how many. */
export function pipeRxsync(d: usize, rx: usize): u32 {
  const tx: usize = load<u32>(rx, kring_peer);
  if (load<u32>(tx, kring_state) == KRING_FROZEN) return 0;
  const first = load<u32>(rx, kring_hwcur);
  rxsync(rx);
  const head = load<u32>(rx, kring_hwcur);
  if (head != first) {
    setArmed(rx, 0);
    const n = load<u32>(rx, kring_num_slots);
    if (head < first) {
      giveBack(rx, tx, first, n);
      giveBack(rx, tx, 0, head);
    } else giveBack(rx, tx, first, head);
    store<u32>(tx, head == 0 ? n - 1 : head - 1, kring_hwtail);
    if (load<u32>(tx, kring_state) == KRING_RUNNING) {
      if (isWatched(tx)) monitorMoved(d, tx);
      publish(d, tx);
    }
  }
  publish(d, rx);
  return distance(first, head, load<u32>(rx, kring_num_slots));
}

/** Gives slots k .. stop - 1 of an rx ring back. One with a bad index comes back with the buffer that went over. */
function giveBack(rx: usize, tx: usize, k: u32, stop: u32): void {
  const ring: usize = load<u32>(rx, kring_ring);
  const by = <usize>load<u32>(tx, kring_ring) - ring;
  const bufs = load<u32>(rx, kring_num_bufs);
  const end = slotAt(ring, stop);
  let record: usize = load<u32>(rx, kring_shadow) + k * 8;
  for (let slot = slotAt(ring, k); slot != end; slot += SLOT_BYTES, record += 8) {
    const w = loadSlot(slot);
    if (bufValid(slotIdx(w), bufs)) {
      exchange(slot, by, record, w);
    } else {
      const known = at64(record, 0) & IDX_MASK;
      storeSlotWord(slot + by, known);
      put64(record, 0, known);
      bump(rx + kring_repairs, 1);
    }
  }
}

/** Arms an rx ring while its sender, or a zero-copy monitor, waits for what it releases, and only then (R11). */
export function pipeArmReceiver(rx: usize): void {
  const tx: usize = load<u32>(rx, kring_peer);
  const waits =
    load<u32>(tx, kring_state) == KRING_RUNNING && loadCur(load<u32>(tx, kring_atok)) == load<u32>(tx, kring_hwtail);
  setArmed(rx, waits || load<u32>(rx, kring_zmon) != 0 ? 1 : 0);
}

/**
 * Whether `pipeRxsync` would find something. Looks at the sender again first: one that ran out of room after the arming
 * kicks for its own ring, but it is the receiver's that has to be armed.
 */
export function pipeRxReady(rx: usize): bool {
  pipeArmReceiver(rx);
  return load<u32>(load<u32>(rx, kring_peer), kring_state) != KRING_FROZEN && rxReady(rx);
}

/** Whether the peer of a tx ring can take slots. */
export function pipeTxOpen(tx: usize): bool {
  return load<u32>(load<u32>(tx, kring_peer), kring_state) != KRING_FROZEN;
}

/**
 * Takes a stopped ring out of the hands of its peer, before its slots are rewritten. Positions live on: what the
 * application had not handed over is forgotten, and so is a packet that it had begun to send.
 */
export function pipeFreeze(kr: usize): void {
  store<u32>(kr, KRING_FROZEN, kring_state);
  if (load<u32>(kr, kring_dir) == NR_DIR_TX) {
    store<u32>(kr, load<u32>(load<u32>(kr, kring_peer), kring_hwtail), kring_hwcur);
    store<u32>(kr, 0, kring_chain_bad);
  }
  const hwcur = load<u32>(kr, kring_hwcur);
  store<u32>(kr, hwcur, kring_rhead);
  store<u32>(kr, hwcur, kring_rcur);
  store<u32>(kr, 0, kring_faulty);
}

/** Ends `pipeFreeze`. */
export function pipeThaw(kr: usize): void {
  store<u32>(kr, KRING_STOPPED, kring_state);
}
