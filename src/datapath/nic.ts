/**
 * Interfaces of the host: frames go between slots of a port's rings and a nic_queue's rings (AF_XDP's four) by buffer,
 * nothing is copied here. Direct: the port's user is a guest, and these are the port's txsync and rxsync. Hosted: the port
 * is one of a switch, and the datapath plays its application, in the CSB, as any other would. docs/nics.md
 *
 * Receiving: every buffer of the ring that receives is with the kernel (fill ring, then rx ring) or in a slot that its user
 * has. The slot that a frame is put into gets the frame's buffer; the one it held is with the kernel already: slots that are
 * not their user's say nothing, the fill ring's entries do (heldBuffers in src/memory).
 * Sending: a slot is its user's again when its entry is completed. Completions are counted, not matched: in copy mode a
 * frame is copied when it is sent, and drivers complete in order.
 */
import { isWatched, publish, rxsync, setArmed, txReady, txsyncPrologue } from './kring';
import {
  domain_nics,
  domain_num_nics,
  KRING_RUNNING,
  kring_atok,
  kring_buf_base,
  kring_buf_size,
  kring_bytes,
  kring_copies,
  kring_drop_bad,
  kring_drop_full,
  kring_drop_stopped,
  kring_faulty,
  kring_hwcur,
  kring_hwtail,
  kring_mon,
  kring_nic_opening,
  kring_num_bufs,
  kring_num_slots,
  kring_packets,
  kring_peer,
  kring_rhead,
  kring_ring,
  kring_slots,
  kring_state,
  kring_zmon,
  NETMAP_FIRST_BUF,
  nic_queue_active,
  nic_queue_bad_waits,
  nic_queue_comp_cons,
  nic_queue_completion_consumer,
  nic_queue_completion_producer,
  nic_queue_domain,
  nic_queue_done,
  nic_queue_fill_desc,
  nic_queue_fill_prod,
  nic_queue_fill_producer,
  nic_queue_headroom,
  nic_queue_hosted,
  nic_queue_idx,
  nic_queue_in_flight,
  nic_queue_kick,
  nic_queue_ledger,
  nic_queue_mask,
  nic_queue_max_pieces,
  nic_queue_refilled,
  nic_queue_rx_cons,
  nic_queue_rx_consumer,
  nic_queue_rx_desc,
  nic_queue_rx_head,
  nic_queue_rx_kring,
  nic_queue_rx_producer,
  nic_queue_sent,
  nic_queue_tx_desc,
  nic_queue_tx_head,
  nic_queue_tx_kring,
  nic_queue_tx_prod,
  nic_queue_tx_producer,
  nic_queue_umem,
  NS_INDIRECT,
  NS_MOREFRAG,
  NS_RFRAGS_SHIFT,
} from './layouts.generated';
import { monitorMoved, monitorSent } from './monitor';
import {
  descAddr,
  descContinues,
  descLen,
  givenBack,
  ringCount,
  setRingCount,
  storeDesc,
  storeFill,
} from './nic-rings';
import { loadHead, loadSlot, slotAt, slotFlags, slotIdx, slotLen, storeCursor, storeSlotWord } from './peer';
import { at, bump, push, removeAt } from './private';

/** Slots from a to b, in ring order. */
function distance(a: u32, b: u32, n: u32): u32 {
  return b >= a ? b - a : b + n - a;
}

function wrap(i: u32, n: u32): u32 {
  return i >= n ? i - n : i;
}

/** A queue whose rings were just mapped: every buffer of the ring that receives goes to the kernel. */
export function nicUp(d: usize, q: usize): void {
  const tx: usize = load<u32>(q, nic_queue_tx_kring);
  const rx: usize = load<u32>(q, nic_queue_rx_kring);
  store<u32>(q, <u32>d, nic_queue_domain);
  store<u32>(q, 1, nic_queue_active);
  store<u32>(q, push(d + domain_num_nics, d + domain_nics, q), nic_queue_idx);
  for (let p = nic_queue_rx_cons; p <= nic_queue_rx_head; p += 4) clear(q, p);
  const hosted = load<u32>(q, nic_queue_hosted) != 0;
  const receives = hosted ? tx : rx;
  const last = load<u32>(receives, kring_num_slots) - 1;
  refill(q, receives, 0, last);
  refill(q, receives, last, 0);
  store<u32>(tx, <u32>q, kring_peer);
  store<u32>(rx, <u32>q, kring_peer);
  if (hosted) return;
  store<u32>(q, load<u32>(tx, kring_hwcur), nic_queue_done);
}

function clear(q: usize, field: usize): void {
  store<u32>(q + field - nic_queue_idx, 0, nic_queue_idx);
}

/** The queue's rings are not touched any more. What is not sent is lost. */
export function nicDown(q: usize): void {
  const d: usize = load<u32>(q, nic_queue_domain);
  if (d == 0) return;
  const idx = load<u32>(q, nic_queue_idx);
  const moved = removeAt(d + domain_num_nics, d + domain_nics, idx);
  if (moved != 0) store<u32>(moved, idx, nic_queue_idx);
  store<u32>(q, 0, nic_queue_domain);
  store<u32>(q, 0, nic_queue_active);
  store<u32>(load<u32>(q, nic_queue_tx_kring), 0, kring_peer);
  store<u32>(load<u32>(q, nic_queue_rx_kring), 0, kring_peer);
}

/** Gives the buffers of slots from .. to - 1 to the kernel. Which buffers those are is read once, and checked. */
function refill(q: usize, kr: usize, from: u32, to: u32): void {
  if (from == to) return;
  const n = load<u32>(kr, kring_num_slots);
  const ring: usize = load<u32>(kr, kring_ring);
  const bufs = load<u32>(kr, kring_num_bufs);
  const bufSize = load<u32>(kr, kring_buf_size);
  const base = load<u32>(kr, kring_buf_base) - load<u32>(q, nic_queue_umem) - load<u32>(q, nic_queue_headroom);
  const mask = load<u32>(q, nic_queue_mask);
  const desc: usize = load<u32>(q, nic_queue_fill_desc);
  let prod = load<u32>(q, nic_queue_fill_prod);
  for (let k = from; k != to; k = k + 1 == n ? 0 : k + 1) {
    let idx = slotIdx(loadSlot(slotAt(ring, k)));
    if (idx - NETMAP_FIRST_BUF >= bufs - NETMAP_FIRST_BUF) {
      idx = <u32>at(load<u32>(q, nic_queue_ledger), k);
      bump(kr + kring_drop_bad, 1);
    }
    storeFill(desc, prod & mask, base + idx * bufSize);
    prod++;
  }
  store<u32>(q, prod, nic_queue_fill_prod);
  setRingCount(load<u32>(q, nic_queue_fill_producer), prod);
}

/** Entries of frames received that were not taken yet. */
function waiting(q: usize): u32 {
  return ringCount(load<u32>(q, nic_queue_rx_producer)) - load<u32>(q, nic_queue_rx_cons);
}

/** Whether the frame received that is next is there, and fits into `room` slots of a ring, or never will. */
function nextFits(q: usize, kr: usize, room: u32): bool {
  const left = waiting(q);
  if (left == 0) return false;
  const mask = load<u32>(q, nic_queue_mask);
  const desc: usize = load<u32>(q, nic_queue_rx_desc);
  const cons = load<u32>(q, nic_queue_rx_cons);
  let frags: u32 = 1;
  while (frags < left && descContinues(desc, (cons + frags - 1) & mask)) frags++;
  if (descContinues(desc, (cons + frags - 1) & mask)) return false;
  return frags <= room || frags == load<u32>(kr, kring_num_slots);
}

/**
 * Puts frames received into slots of a ring from `pos` on, as far as they fit whole into `room` slots. Returns the slots.
 * @param rfrags whether a slot says how many its frame has (rx rings do)
 */
function receive(q: usize, kr: usize, pos: u32, room: u32, rfrags: bool): u32 {
  let left = waiting(q);
  if (left == 0 || room == 0) return 0;
  const n = load<u32>(kr, kring_num_slots);
  const ring: usize = load<u32>(kr, kring_ring);
  const bufSize = load<u32>(kr, kring_buf_size);
  const base = load<u32>(kr, kring_buf_base) - load<u32>(q, nic_queue_umem);
  const mask = load<u32>(q, nic_queue_mask);
  const desc: usize = load<u32>(q, nic_queue_rx_desc);
  const fill: usize = load<u32>(q, nic_queue_fill_desc);
  const filled = load<u32>(q, nic_queue_fill_prod);
  const headroom = load<u32>(q, nic_queue_headroom);
  let cons = load<u32>(q, nic_queue_rx_cons);
  let used: u32 = 0;
  let packets: u32 = 0;
  let bytes: u32 = 0;
  while (left != 0) {
    let frags: u32 = 1;
    while (frags < left && descContinues(desc, (cons + frags - 1) & mask)) frags++;
    if (descContinues(desc, (cons + frags - 1) & mask)) break;
    if (used + frags > room) {
      // It took all buffers of the ring, one more than the ring ever shows.
      if (frags == n) dropFrames(q, kr, n, kring_drop_full);
      break;
    }
    const count = rfrags ? frags << NS_RFRAGS_SHIFT : 0;
    for (let i: u32 = 1; i <= frags; i++) {
      const e = cons & mask;
      const len = descLen(desc, e);
      const addr = descAddr(desc, e);
      const idx = (addr - base) / bufSize;
      givenBack(fill, mask, cons, filled, addr - headroom);
      const flags = count | (i != frags ? NS_MOREFRAG : 0);
      storeSlotWord(slotAt(ring, pos), <u64>idx | ((<u64>len) << 32) | ((<u64>flags) << 48));
      pos = pos + 1 == n ? 0 : pos + 1;
      bytes += len;
      cons++;
    }
    used += frags;
    left -= frags;
    packets++;
  }
  if (used == 0) return 0;
  store<u32>(q, cons, nic_queue_rx_cons);
  setRingCount(load<u32>(q, nic_queue_rx_consumer), cons);
  if (rfrags) {
    bump(kr + kring_packets, packets);
    bump(kr + kring_slots, used);
    bump(kr + kring_bytes, bytes);
  }
  return used;
}

/** Frames for a ring that is stopped (R19). */
function dropReceived(q: usize, kr: usize): u32 {
  const left = waiting(q);
  if (left != 0) dropFrames(q, kr, left, kring_drop_stopped);
  return left;
}

/** Drops the frames of the next `left` entries, and counts them; their buffers are given back. */
function dropFrames(q: usize, kr: usize, left: u32, counter: usize): void {
  const mask = load<u32>(q, nic_queue_mask);
  const rx: usize = load<u32>(q, nic_queue_rx_desc);
  const fill: usize = load<u32>(q, nic_queue_fill_desc);
  const headroom = load<u32>(q, nic_queue_headroom);
  let cons = load<u32>(q, nic_queue_rx_cons);
  let prod = load<u32>(q, nic_queue_fill_prod);
  let packets: u32 = 0;
  for (let i: u32 = 0; i < left; i++) {
    if (!descContinues(rx, cons & mask)) packets++;
    const addr = descAddr(rx, cons & mask) - headroom;
    givenBack(fill, mask, cons, prod, addr);
    storeFill(fill, prod & mask, addr);
    cons++;
    prod++;
  }
  store<u32>(q, cons, nic_queue_rx_cons);
  setRingCount(load<u32>(q, nic_queue_rx_consumer), cons);
  store<u32>(q, prod, nic_queue_fill_prod);
  setRingCount(load<u32>(q, nic_queue_fill_producer), prod);
  bump(kr + counter, packets);
}

/** Takes back what was sent. Returns the slots. */
function complete(q: usize, kr: usize): u32 {
  const count = ringCount(load<u32>(q, nic_queue_completion_producer));
  const sent = count - load<u32>(q, nic_queue_comp_cons);
  if (sent == 0) return 0;
  store<u32>(q, count, nic_queue_comp_cons);
  setRingCount(load<u32>(q, nic_queue_completion_consumer), count);
  store<u32>(q, load<u32>(q, nic_queue_in_flight) - sent, nic_queue_in_flight);
  store<u32>(q, wrap(load<u32>(q, nic_queue_done) + sent, load<u32>(kr, kring_num_slots)), nic_queue_done);
  return sent;
}

/**
 * Hands slots from .. to - 1 of a ring over for sending. Returns the position after them; a bad packet is passed over when
 * all before it is completed, as completions are counted.
 */
function send(q: usize, kr: usize, from: u32, to: u32): u32 {
  if (from == to) return to;
  store<u32>(q, 0, nic_queue_bad_waits);
  const n = load<u32>(kr, kring_num_slots);
  const ring: usize = load<u32>(kr, kring_ring);
  const bufs = load<u32>(kr, kring_num_bufs);
  const bufSize = load<u32>(kr, kring_buf_size);
  const base = load<u32>(kr, kring_buf_base) - load<u32>(q, nic_queue_umem);
  const mask = load<u32>(q, nic_queue_mask);
  const maxPieces = load<u32>(q, nic_queue_max_pieces);
  const desc: usize = load<u32>(q, nic_queue_tx_desc);
  const first = load<u32>(q, nic_queue_tx_prod);
  const inFlight = load<u32>(q, nic_queue_in_flight);
  let prod = first;
  let packets: u32 = 0;
  let bytes: u32 = 0;
  let k = from;
  while (k != to) {
    // Entries are written as the slots are checked, and count only when the whole packet is good.
    let next = k;
    let frags: u32 = 0;
    let len: u32 = 0;
    let ok = true;
    for (let more = true; more; ) {
      const w = loadSlot(slotAt(ring, next));
      const flags = slotFlags(w);
      next = next + 1 == n ? 0 : next + 1;
      more = (flags & NS_MOREFRAG) != 0 && next != to;
      const l = slotLen(w);
      ok = ok && frags < maxPieces && l != 0 && l <= bufSize && (flags & NS_INDIRECT) == 0;
      ok = ok && slotIdx(w) - NETMAP_FIRST_BUF < bufs - NETMAP_FIRST_BUF;
      if (!ok) continue;
      storeDesc(desc, (prod + frags) & mask, base + slotIdx(w) * bufSize, l, more);
      frags++;
      len += l;
    }
    if (ok) {
      prod += frags;
      packets++;
      bytes += len;
    } else {
      if (inFlight + prod - first != 0) {
        store<u32>(q, 1, nic_queue_bad_waits);
        break;
      }
      store<u32>(q, next, nic_queue_done);
      bump(kr + kring_drop_bad, 1);
      bump(kr + kring_slots, distance(k, next, n));
    }
    k = next;
  }
  const slots = prod - first;
  if (slots == 0) return k;
  store<u32>(q, prod, nic_queue_tx_prod);
  setRingCount(load<u32>(q, nic_queue_tx_producer), prod);
  store<u32>(q, inFlight + slots, nic_queue_in_flight);
  store<u32>(q, load<u32>(q, nic_queue_kick) + slots, nic_queue_kick);
  if (load<u32>(q, nic_queue_hosted) == 0) {
    bump(kr + kring_packets, packets);
    bump(kr + kring_copies, packets);
    bump(kr + kring_slots, slots);
    bump(kr + kring_bytes, bytes);
  }
  return k;
}

/** Packets in slots from .. to - 1; one that `to` cuts off is one, too. */
function packetsBetween(kr: usize, from: u32, to: u32): u32 {
  const n = load<u32>(kr, kring_num_slots);
  let packets: u32 = 0;
  while (from != to) {
    const flags = slotFlags(loadSlot(slotAt(load<u32>(kr, kring_ring), from)));
    from = from + 1 == n ? 0 : from + 1;
    if ((flags & NS_MOREFRAG) == 0 || from == to) packets++;
  }
  return packets;
}

/** Sends slots hwcur .. rhead - 1 of a running tx ring, takes back those that are sent. Returns how many moved. */
export function nicTxsync(d: usize, kr: usize): u32 {
  const q: usize = load<u32>(kr, kring_peer);
  if (txsyncPrologue(kr)) setArmed(kr, 0);
  const head = load<u32>(kr, kring_rhead);
  const hwcur = load<u32>(kr, kring_hwcur);
  const n = load<u32>(kr, kring_num_slots);
  let moved: u32 = 0;
  let pos = head;
  let done = head;
  if (q == 0 && load<u64>(kr, kring_nic_opening) != 0) {
    pos = hwcur;
    done = wrap(load<u32>(kr, kring_hwtail) + 1, n);
  } else if (q == 0) {
    // The interface is gone.
    moved = distance(hwcur, head, n);
    bump(kr + kring_slots, moved);
    bump(kr + kring_drop_stopped, packetsBetween(kr, hwcur, head));
  } else {
    moved = complete(q, kr);
    pos = send(q, kr, hwcur, head);
    if (pos != hwcur && load<u32>(kr, kring_mon) != 0) monitorSent(d, kr, pos);
    moved += distance(hwcur, pos, n);
    done = load<u32>(q, nic_queue_done);
  }
  store<u32>(kr, pos, kring_hwcur);
  store<u32>(kr, done == 0 ? n - 1 : done - 1, kring_hwtail);
  if (isWatched(kr)) monitorMoved(d, kr);
  publish(d, kr);
  return moved;
}

/** Gives back what the user of a running rx ring released, and puts frames received into it. Returns how many moved. */
export function nicRxsync(d: usize, kr: usize): u32 {
  const q: usize = load<u32>(kr, kring_peer);
  const first = load<u32>(kr, kring_hwcur);
  rxsync(kr);
  const hwcur = load<u32>(kr, kring_hwcur);
  const n = load<u32>(kr, kring_num_slots);
  let used: u32 = 0;
  if (q != 0) {
    refill(q, kr, first, hwcur);
    const hwtail = load<u32>(kr, kring_hwtail);
    used = receive(q, kr, hwtail, n - 1 - distance(hwcur, hwtail, n), true);
    store<u32>(kr, wrap(hwtail + used, n), kring_hwtail);
  }
  if (isWatched(kr)) monitorMoved(d, kr);
  publish(d, kr);
  return used + distance(first, hwcur, n);
}

/**
 * Arms an rx ring while less than half of its buffers are with the kernel, or so few that the longest frame may have to wait for
 * those that its user has, or a zero-copy monitor waits for them (R11).
 */
export function nicArmReceiver(kr: usize): void {
  const q: usize = load<u32>(kr, kring_peer);
  const n = load<u32>(kr, kring_num_slots);
  const theirs = distance(load<u32>(kr, kring_hwcur), load<u32>(kr, kring_hwtail), n);
  const few = theirs > n / 2 || (q != 0 && theirs != 0 && n - theirs <= load<u32>(q, nic_queue_max_pieces));
  setArmed(kr, few || load<u32>(kr, kring_zmon) != 0 ? 1 : 0);
}

/** Whether `nicTxsync` would find something. */
export function nicTxReady(kr: usize): bool {
  const q: usize = load<u32>(kr, kring_peer);
  if (q == 0) return load<u64>(kr, kring_nic_opening) == 0 && txReady(kr);
  return completed(q) || (!badWaits(q) && txReady(kr));
}

/** Whether `complete` would find something. */
function completed(q: usize): bool {
  return ringCount(load<u32>(q, nic_queue_completion_producer)) != load<u32>(q, nic_queue_comp_cons);
}

/** Whether nothing can be sent before something is completed. */
function badWaits(q: usize): bool {
  return load<u32>(q, nic_queue_bad_waits) != 0 && load<u32>(q, nic_queue_in_flight) != 0;
}

/** Whether `nicRxsync` would find something. */
export function nicRxReady(kr: usize): bool {
  const q: usize = load<u32>(kr, kring_peer);
  if (load<u32>(kr, kring_faulty) == 0 && loadHead(load<u32>(kr, kring_atok)) != load<u32>(kr, kring_rhead))
    return true;
  const n = load<u32>(kr, kring_num_slots);
  return q != 0 && nextFits(q, kr, n - 1 - distance(load<u32>(kr, kring_hwcur), load<u32>(kr, kring_hwtail), n));
}

/** What has to be done for queues before the rings are served: frames for switches, and for rings that are stopped. */
export function nicsBefore(d: usize): u32 {
  const n = load<u32>(d, domain_num_nics);
  let moved: u32 = 0;
  for (let i: u32 = 0; i < n; i++) {
    const q = at(d + domain_nics, i);
    if (load<u32>(q, nic_queue_hosted) != 0) {
      moved += hostedReceive(q);
      continue;
    }
    const rx: usize = load<u32>(q, nic_queue_rx_kring);
    const tx: usize = load<u32>(q, nic_queue_tx_kring);
    if (load<u32>(rx, kring_state) != KRING_RUNNING) moved += dropReceived(q, rx);
    if (load<u32>(tx, kring_state) != KRING_RUNNING) moved += complete(q, tx);
  }
  return moved;
}

/** After the rings were served: what a switch delivered to ports of interfaces is sent. */
export function nicsAfter(d: usize): u32 {
  const n = load<u32>(d, domain_num_nics);
  let moved: u32 = 0;
  for (let i: u32 = 0; i < n; i++) {
    const q = at(d + domain_nics, i);
    if (load<u32>(q, nic_queue_hosted) != 0) moved += hostedSend(q);
  }
  return moved;
}

/** The application of a switch's port: frames received are sent into the switch. */
function hostedReceive(q: usize): u32 {
  const kr: usize = load<u32>(q, nic_queue_tx_kring);
  const hwcur = load<u32>(kr, kring_hwcur);
  refill(q, kr, load<u32>(q, nic_queue_refilled), hwcur);
  store<u32>(q, hwcur, nic_queue_refilled);
  const n = load<u32>(kr, kring_num_slots);
  const head = load<u32>(q, nic_queue_tx_head);
  const used = receive(q, kr, head, distance(head, load<u32>(kr, kring_hwtail), n), false);
  if (used == 0) return 0;
  const next = wrap(head + used, n);
  store<u32>(q, next, nic_queue_tx_head);
  storeCursor(load<u32>(kr, kring_atok), next);
  return used;
}

/** … frames that the switch delivered go out; slots whose frames are sent are released. */
function hostedSend(q: usize): u32 {
  const kr: usize = load<u32>(q, nic_queue_rx_kring);
  const n = load<u32>(kr, kring_num_slots);
  let moved = complete(q, kr);
  const from = load<u32>(q, nic_queue_sent);
  const sent = send(q, kr, from, load<u32>(kr, kring_hwtail));
  store<u32>(q, sent, nic_queue_sent);
  moved += distance(from, sent, n);
  const done = load<u32>(q, nic_queue_done);
  if (done != load<u32>(q, nic_queue_rx_head)) {
    store<u32>(q, done, nic_queue_rx_head);
    storeCursor(load<u32>(kr, kring_atok), done);
  }
  return moved;
}

/** How many queues have something for `nicsBefore` or `nicsAfter`. */
export function nicsReady(d: usize): u32 {
  const n = load<u32>(d, domain_num_nics);
  let ready: u32 = 0;
  for (let i: u32 = 0; i < n; i++) {
    const q = at(d + domain_nics, i);
    const tx: usize = load<u32>(q, nic_queue_tx_kring);
    const rx: usize = load<u32>(q, nic_queue_rx_kring);
    if (load<u32>(q, nic_queue_hosted) == 0) {
      if (load<u32>(rx, kring_state) != KRING_RUNNING && waiting(q) != 0) ready++;
      else if (load<u32>(tx, kring_state) != KRING_RUNNING && completed(q)) ready++;
      continue;
    }
    const room = distance(load<u32>(q, nic_queue_tx_head), load<u32>(tx, kring_hwtail), load<u32>(tx, kring_num_slots));
    const sends = !badWaits(q) && load<u32>(rx, kring_hwtail) != load<u32>(q, nic_queue_sent);
    if (completed(q) || nextFits(q, tx, room) || sends) ready++;
  }
  return ready;
}
