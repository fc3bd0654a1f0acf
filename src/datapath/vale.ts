/**
 * VALE: forwarding between the ports of a switch (netmap_vale.c). In groups of FT_GROUP slots, two passes: `scan`
 * (scan.ts) takes each slot of the sender once and checks it, `forward` learns, looks up and copies. Between them, what is
 * known of the slots is in the domain's `ft` (docs/datapath.md).
 *
 * Owner of everything here: the domain's datapath thread.
 */
import { deliverChain } from './chain';
import { BULK, copyBulk, copyFrame, copyLong, SHORT, storeVnetHdr, touch } from './copy';
import { flowRing } from './flow';
import { isWatched, publish, rxsync } from './kring';
import {
  domain_active,
  domain_dirty,
  domain_ft,
  domain_full,
  domain_num_active,
  domain_num_dirty,
  domain_num_ft,
  domain_ports,
  KRING_RUNNING,
  kring_buf_base,
  kring_buf_size,
  kring_bytes,
  kring_copies,
  kring_dirty,
  kring_drop_full,
  kring_drop_nodst,
  kring_drop_stopped,
  kring_hwcur,
  kring_hwtail,
  kring_mon,
  kring_num_bufs,
  kring_num_slots,
  kring_packets,
  kring_port,
  kring_rhead,
  kring_ring,
  kring_ring_id,
  kring_slots,
  kring_state,
  NS_RFRAGS_SHIFT,
  nm_bdg_fwd_flags,
  nm_bdg_fwd_frags,
  nm_bdg_fwd_len,
  nm_bdg_fwd_size,
  nm_bdg_fwd_src,
  port_num_rx_rings,
  port_num_tx_rings,
  port_port_id,
  port_rx_rings,
  port_vnet_hdr_len,
} from './layouts.generated';
import { monitorMoved, monitorSent } from './monitor';
import { deliverOffload } from './offload';
import { loadVnet } from './offload-vnet';
import { bufValid, loadSlot, slotAt, slotIdx, slotLenFlags, storeSlot } from './peer';
import { at, bump, push } from './private';
import { destination, FLOODED, MALFORMED, takeHeaders } from './resolve';
import { scan } from './scan';
import { ALL_PORTS, find, learn } from './table';

/** Slots of a ring forwarded in a turn, before receivers and sender are told (netmap: 1024). */
const BATCH: u32 = 512;

/** A long frame is on its way to the cache while so many before it are copied. */
const AHEAD: usize = 3;

/** Whether an entry of ft, read as one u64, is a packet of one slot without flags. */
function isPlain(entry: u64): bool {
  return entry >> (8 * nm_bdg_fwd_frags) == 1;
}

/**
 * Forwards slots of a tx ring from hwcur on, up to rhead or, of more, the first BATCH (and the rest of a chain), and tells
 * sender and receivers. Returns how many.
 */
export function valeTxsync(d: usize, kr: usize): u32 {
  const head = load<u32>(kr, kring_rhead);
  const n = load<u32>(kr, kring_num_slots);
  let j = load<u32>(kr, kring_hwcur);
  let done: u32 = 0;
  do {
    const next = scan(d, kr, j, head);
    forward(d, kr);
    done += next >= j ? next - j : next + n - j;
    j = next;
  } while (j != head && done < BATCH);
  bump(kr + kring_slots, done);
  if (load<u32>(kr, kring_mon) != 0) monitorSent(d, kr, j);
  store<u32>(kr, j, kring_hwcur);
  store<u32>(kr, j == 0 ? n - 1 : j - 1, kring_hwtail);
  if (isWatched(kr)) monitorMoved(d, kr);
  publish(d, kr);
  publishReceivers(d);
  return done;
}

/** Second pass: learns where the packets of `ft` come from, and copies them to where they go. */
function forward(d: usize, kr: usize): void {
  const port: usize = load<u32>(kr, kring_port);
  const me = load<u32>(port, port_port_id);
  const hdr = load<u32>(port, port_vnet_hdr_len);
  const end = d + domain_ft + load<u32>(d, domain_num_ft) * nm_bdg_fwd_size;
  if (hdr != 0) takeHeaders(d, kr, end, hdr);
  let packets: u32 = 0;
  let copies: u32 = 0;
  let noDst: u32 = 0;
  for (let ft = d + domain_ft; ft != end; ) {
    const next = ft + <u32>load<u8>(ft, nm_bdg_fwd_frags) * nm_bdg_fwd_size;
    if (load<u8>(ft, nm_bdg_fwd_flags) == MALFORMED) {
      ft = next;
      continue;
    }
    const dst = destination(d, me, ft, hdr);
    packets++;
    if (dst == me) {
      noDst++;
      ft = next;
      continue;
    }
    const known = dst < ALL_PORTS;
    ft = known ? deliver(d, kr, me, dst, ft, end, hdr) : flood(d, port, me, ft, end, hdr);
    // What went with it are packets of one slot.
    const more = <u32>(ft - next) / nm_bdg_fwd_size;
    packets += more;
    copies += (more + 1) * (known ? 1 : load<u32>(d, domain_num_active) - 1);
  }
  bump(kr + kring_packets, packets);
  bump(kr + kring_copies, copies);
  if (noDst != 0) bump(kr + kring_drop_nodst, noDst);
}

/**
 * Delivers the packet at ft, and plain ones that follow it and go to all ports too, to ring 0 of everyone else, as netmap
 * does. Returns the entry after them.
 */
function flood(d: usize, port: usize, me: u32, ft: usize, end: usize, hdr: u32): usize {
  let next = ft + <u32>load<u8>(ft, nm_bdg_fwd_frags) * nm_bdg_fwd_size;
  while (next != end && isPlain(load<u64>(next, nm_bdg_fwd_src)) && destination(d, me, next, hdr) >= ALL_PORTS) {
    store<u8>(next, FLOODED, nm_bdg_fwd_flags);
    next += nm_bdg_fwd_size;
  }
  const active = load<u32>(d, domain_num_active);
  for (let i: u32 = 0; i < active; i++) {
    const to = at(d + domain_active, i);
    if (to == port) continue;
    for (let left = ft; left != next; ) left = deliverTo(d, to, 0, 0, 0, left, next, hdr);
  }
  return next;
}

/**
 * Delivers the packet at ft to port dst, and what follows it there as far as that is plain packets for the same port.
 * Returns the entry after them.
 */
function deliver(d: usize, kr: usize, me: u32, dst: u64, ft: usize, end: usize, hdr: u32): usize {
  const to = at(d + domain_ports, <u32>dst);
  const rings = load<u32>(to, port_num_rx_rings);
  if (rings == 1 || load<u32>(load<u32>(kr, kring_port), port_num_tx_rings) != 1) {
    return deliverTo(d, to, load<u32>(kr, kring_ring_id), me, dst, ft, end, hdr);
  }
  // A sender that cannot say by its ring: the flow says.
  const next = ft + <u32>load<u8>(ft, nm_bdg_fwd_frags) * nm_bdg_fwd_size;
  return deliverTo(d, to, packetRing(ft, hdr, rings), me, dst, ft, next, hdr);
}

/** The ring of a receiver with several that a packet's flow goes to. */
function packetRing(ft: usize, hdr: u32, rings: u32): u32 {
  const len: u32 = load<u16>(ft, nm_bdg_fwd_len);
  if (len > hdr) return flowRing(<usize>load<u32>(ft, nm_bdg_fwd_src) + hdr, len - hdr, rings);
  const second = ft + nm_bdg_fwd_size;
  return flowRing(load<u32>(second, nm_bdg_fwd_src), load<u16>(second, nm_bdg_fwd_len), rings);
}

/**
 * Delivers the packet at ft, and what follows it, to the ring of that number of a port, modulo the port's rx rings, or counts
 * there why not (R10). Returns the entry after what was taken.
 */
function deliverTo(d: usize, port: usize, ring: u32, me: u32, dst: u64, ft: usize, end: usize, hdr: u32): usize {
  const rings = load<u32>(port, port_num_rx_rings);
  const kr = at(port + port_rx_rings, ring < rings ? ring : ring % rings);
  const frags: u32 = load<u8>(ft, nm_bdg_fwd_frags);
  const next = ft + frags * nm_bdg_fwd_size;
  if (load<u32>(kr, kring_state) != KRING_RUNNING) {
    bump(kr + kring_drop_stopped, 1);
    return next;
  }
  if (load<u32>(kr, kring_dirty) == 0) {
    store<u32>(kr, 1, kring_dirty);
    push(d + domain_num_dirty, d + domain_dirty, kr);
    rxsync(kr);
  }
  const n = load<u32>(kr, kring_num_slots);
  const tail = load<u32>(kr, kring_hwtail);
  const space = rxSpace(load<u32>(kr, kring_hwcur), tail, n);
  const dstHdr = load<u32>(port, port_vnet_hdr_len);
  let used: u32 = 0;
  if (hdr != dstHdr) {
    used = deliverOffload(d, kr, ft, tail, space, hdr, dstHdr);
  } else if (frags > space) {
    bump(kr + kring_drop_full, 1);
    store<u32>(d, <u32>kr, domain_full);
  } else {
    if (frags == 1) {
      // As far as there is room and the ring does not wrap.
      const room = min(min(space, n - tail), <u32>(end - ft) / nm_bdg_fwd_size);
      const slot = slotAt(load<u32>(kr, kring_ring), tail);
      const until = ft + room * nm_bdg_fwd_size;
      const behind =
        load<u16>(ft, nm_bdg_fwd_len) < BULK
          ? copyRun(d, kr, me, dst, ft, until, slot, hdr)
          : copyLongRun(d, kr, me, dst, ft, until, slot, hdr);
      const copied = <u32>(behind - ft) / nm_bdg_fwd_size;
      if (copied != 0) {
        store<u32>(kr, tail + copied == n ? 0 : tail + copied, kring_hwtail);
        return behind;
      }
    }
    used = deliverChain(d, kr, ft, frags, tail, hdr);
  }
  store<u32>(kr, tail + used >= n ? tail + used - n : tail + used, kring_hwtail);
  return next;
}

/** Free slots of an rx ring: the host owns hwtail .. hwcur - 1, one of which stays empty. */
function rxSpace(hwcur: u32, hwtail: u32, n: u32): u32 {
  return hwcur > hwtail ? hwcur - hwtail - 1 : n - 1 - hwtail + hwcur;
}

/**
 * Copies the packet of one slot at ft, and what follows it as far as that is plain packets for dst, to the slots from `slot`
 * on, and counts them. Returns the first entry that is no such packet, or whose slot or buffer at the receiver will not do,
 * or `end`.
 */
function copyRun(d: usize, kr: usize, me: u32, dst: u64, ft: usize, end: usize, slot: usize, hdr: u32): usize {
  const base: usize = load<u32>(kr, kring_buf_base);
  const bufSize = load<u32>(kr, kring_buf_size);
  const bufs = load<u32>(kr, kring_num_bufs);
  const first = ft;
  // A slot is as large as two entries: one variable less in the loop.
  const ofs = slot - 2 * ft;
  // In the upper half those of frames that are left to copyLongFrames: one variable for both.
  let bytes: u64 = 0;
  for (;;) {
    const to = ofs + 2 * ft;
    const was = loadSlot(to);
    const idx = slotIdx(was);
    const len: u32 = load<u16>(ft, nm_bdg_fwd_len);
    if (!bufValid(idx, bufs)) break;
    if (len > bufSize) break;
    const src: usize = load<u32>(ft, nm_bdg_fwd_src);
    const buf = base + idx * bufSize;
    if (len <= SHORT) copyFrame(src, buf, len);
    else if (len < BULK) copyLong(src, buf, len);
    else bytes += ((<u64>len) << 32) - len;
    // What was checked is what arrives, whatever the sender does meanwhile.
    if (hdr != 0) storeVnetHdr(buf, loadVnet(d, ft), hdr);
    storeSlot(to, len, 1 << NS_RFRAGS_SHIFT);
    bytes += len;
    ft += nm_bdg_fwd_size;
    if (ft == end) break;
    const entry = load<u64>(ft, nm_bdg_fwd_src);
    if (isPlain(entry)) {
      learn(d, me, <u32>entry + hdr, 0);
      if (find(d, <u32>entry + hdr) != dst) break;
    } else if (load<u8>(ft, nm_bdg_fwd_flags) != FLOODED) break;
  }
  if (bytes >> 32 != 0) copyLongFrames(kr, first, ft, ofs, hdr);
  const packets = <u32>(ft - first) / nm_bdg_fwd_size;
  bump(kr + kring_packets, packets);
  bump(kr + kring_slots, packets);
  bump(kr + kring_bytes, <u32>bytes + <u32>(bytes >> 32));
  return ft;
}

/**
 * Copies what `copyRun` left for it of a run: frames of at least BULK bytes, without their VirtIO headers. In a loop of its
 * own, as a call, which `copyBulk` is, takes the registers from a loop's variables.
 */
function copyLongFrames(kr: usize, ft: usize, end: usize, ofs: usize, hdr: u32): void {
  const base: usize = load<u32>(kr, kring_buf_base);
  const bufSize = load<u32>(kr, kring_buf_size);
  const bufs = load<u32>(kr, kring_num_bufs);
  for (; ft != end; ft += nm_bdg_fwd_size) {
    const len: u32 = load<u16>(ft, nm_bdg_fwd_len);
    if (len < BULK) continue;
    // Read again, so checked again: a receiver that changes slots it has not got yet spoils what it gets.
    const idx = slotIdx(loadSlot(ofs + 2 * ft));
    if (!bufValid(idx, bufs)) continue;
    copyBulk(load<u32>(ft, nm_bdg_fwd_src) + hdr, base + idx * bufSize + hdr, len - hdr);
  }
}

/**
 * As `copyRun`, for a run of frames of at least BULK bytes; a shorter one ends it. (Copied at once they come to 1.05 of what
 * they come to after the run: what is to be done for the next frame is done while stores of this one wait.)
 */
function copyLongRun(d: usize, kr: usize, me: u32, dst: u64, ft: usize, end: usize, slot: usize, hdr: u32): usize {
  const base: usize = load<u32>(kr, kring_buf_base);
  const bufSize = load<u32>(kr, kring_buf_size);
  const bufs = load<u32>(kr, kring_num_bufs);
  const first = ft;
  // A slot is as large as two entries: one variable less in the loop.
  const ofs = slot - 2 * ft;
  let bytes: u32 = 0;
  for (;;) {
    const to = ofs + 2 * ft;
    const was = loadSlot(to);
    const idx = slotIdx(was);
    const len: u32 = load<u16>(ft, nm_bdg_fwd_len);
    if (!bufValid(idx, bufs)) break;
    if (len > bufSize) break;
    const src: usize = load<u32>(ft, nm_bdg_fwd_src);
    const buf = base + idx * bufSize;
    if (len < BULK) break;
    const later = ft + AHEAD * nm_bdg_fwd_size;
    if (later < end) touch(load<u32>(later, nm_bdg_fwd_src), load<u16>(later, nm_bdg_fwd_len));
    copyBulk(src, buf, len);
    // What was checked is what arrives, whatever the sender does meanwhile.
    if (hdr != 0) storeVnetHdr(buf, loadVnet(d, ft), hdr);
    storeSlot(to, len, 1 << NS_RFRAGS_SHIFT);
    bytes += len;
    ft += nm_bdg_fwd_size;
    if (ft == end) break;
    const entry = load<u64>(ft, nm_bdg_fwd_src);
    if (isPlain(entry)) {
      learn(d, me, <u32>entry + hdr, 0);
      if (find(d, <u32>entry + hdr) != dst) break;
    } else if (load<u8>(ft, nm_bdg_fwd_flags) != FLOODED) break;
  }
  const packets = <u32>(ft - first) / nm_bdg_fwd_size;
  bump(kr + kring_packets, packets);
  bump(kr + kring_slots, packets);
  bump(kr + kring_bytes, bytes);
  return ft;
}

/** End of a batch: tells every receiver of it. */
function publishReceivers(d: usize): void {
  const n = load<u32>(d, domain_num_dirty);
  for (let i: u32 = 0; i < n; i++) {
    const kr = at(d + domain_dirty, i);
    store<u32>(kr, 0, kring_dirty);
    if (isWatched(kr)) monitorMoved(d, kr);
    publish(d, kr);
  }
  store<u32>(d, 0, domain_num_dirty);
}
