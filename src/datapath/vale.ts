/**
 * VALE: forwarding between the ports of a switch (netmap_vale.c). In groups of FT_GROUP slots, three passes: `scan` takes
 * each slot of the sender once and checks it, `resolve` learns and looks up, `deliver` copies. Between them, what is known
 * of the slots is in the domain's `ft`. Each is a short loop that keeps its state in registers (docs/datapath.md).
 *
 * Owner of everything here: the domain's datapath thread.
 */
import { deliverChain } from './chain';
import { copyFrame, storeVnetHdr } from './copy';
import { flowRing } from './flow';
import { publish, rxsync } from './kring';
import {
  DST_FLOOD,
  DST_NONE,
  domain_active,
  domain_dirty,
  domain_ft,
  domain_num_active,
  domain_num_dirty,
  domain_num_ft,
  domain_ports,
  FT_GROUP,
  KRING_RUNNING,
  kring_buf_base,
  kring_buf_size,
  kring_bytes,
  kring_copies,
  kring_dirty,
  kring_drop_bad,
  kring_drop_dst,
  kring_drop_full,
  kring_drop_nodst,
  kring_drop_stopped,
  kring_hwcur,
  kring_hwtail,
  kring_num_bufs,
  kring_num_slots,
  kring_packets,
  kring_port,
  kring_rhead,
  kring_ring,
  kring_ring_id,
  kring_slots,
  kring_state,
  NETMAP_MAX_FRAGS,
  NS_BUF_CHANGED,
  NS_INDIRECT,
  NS_MOREFRAG,
  NS_NO_LEARN,
  NS_RFRAGS_SHIFT,
  nm_bdg_fwd_dst,
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
import { deliverOffload } from './offload';
import { packetBytes } from './offload-stream';
import { loadVnet, takeVnet } from './offload-vnet';
import {
  bufValid,
  loadHeader,
  loadSlot,
  SLOT_BYTES,
  slotAt,
  slotFlags,
  slotIdx,
  slotLen,
  slotsBetween,
  storeSlot,
  storeSlotFlags,
} from './peer';
import { at, bump, push } from './private';
import { lookup } from './table';

/** Slots of a ring forwarded in a turn, before receivers and sender are told (netmap: 1024). */
const BATCH: u32 = 512;
/** Bytes of an Ethernet header. */
const ETH_HLEN: u32 = 14;
/** Flags of a slot that need a closer look. */
const NS_SLOW: u32 = NS_MOREFRAG | NS_INDIRECT | NS_BUF_CHANGED;

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
    resolve(d, kr);
    deliver(d, kr);
    done += next >= j ? next - j : next + n - j;
    j = next;
  } while (j != head && done < BATCH);
  bump(kr + kring_slots, done);
  store<u32>(kr, j, kring_hwcur);
  store<u32>(kr, j == 0 ? n - 1 : j - 1, kring_hwtail);
  publish(d, kr);
  publishReceivers(d);
  return done;
}

/**
 * First pass: takes slots of a tx ring from j on, at most to `head`, until FT_GROUP of them are in `ft` (the last chain
 * whole). Bad ones are counted here. Returns where it stopped.
 */
function scan(d: usize, kr: usize, j: u32, head: u32): u32 {
  const ring: usize = load<u32>(kr, kring_ring);
  const n = load<u32>(kr, kring_num_slots);
  const base: usize = load<u32>(kr, kring_buf_base);
  const bufSize = load<u32>(kr, kring_buf_size);
  const bufs = load<u32>(kr, kring_num_bufs);
  const minLen = load<u32>(load<u32>(kr, kring_port), port_vnet_hdr_len) + ETH_HLEN;
  const start = d + domain_ft;
  const end = start + FT_GROUP * nm_bdg_fwd_size;
  let ft = start;
  let bytes: u32 = 0;
  while (j != head && ft < end) {
    // Plain packets of one slot, as far as the ring does not wrap.
    const ahead = (head > j ? head : n) - j;
    const room = <u32>(end - ft) / nm_bdg_fwd_size;
    const piece = slotAt(ring, j);
    let slot = piece;
    const stop = piece + min(ahead, room) * SLOT_BYTES;
    let w: u64 = 0;
    let slow = false;
    do {
      w = loadSlot(slot);
      slow = (slotFlags(w) & NS_SLOW) != 0;
      if (slow) break;
      slot += SLOT_BYTES;
      const len = slotLen(w);
      if (slotValid(w, bufs, bufSize) && len >= minLen) {
        storeFwd(ft, base + slotIdx(w) * bufSize, len, 1, slotFlags(w));
        ft += nm_bdg_fwd_size;
        bytes += len;
      } else {
        bump(kr + kring_drop_bad, 1);
      }
    } while (slot != stop);
    j += slotsBetween(piece, slot);
    if (j == n) j = 0;
    if (slow) {
      j = scanChain(kr, ft, w, j, head);
      ft += <u32>load<u8>(ft, nm_bdg_fwd_frags) * nm_bdg_fwd_size;
    }
  }
  store<u32>(d, <u32>(ft - start) / nm_bdg_fwd_size, domain_num_ft);
  bump(kr + kring_bytes, bytes);
  return j;
}

function slotValid(w: u64, bufs: u32, bufSize: u32): bool {
  return bufValid(slotIdx(w), bufs) && slotLen(w) <= bufSize;
}

/** An entry of ft; where the destination will be are, for now, those flags that `resolve` wants. */
function storeFwd(ft: usize, src: usize, len: u32, frags: u32, flags: u32): void {
  const at = <u64>(len | (frags << 16) | ((flags & NS_NO_LEARN) << 24));
  store<u64>(ft, <u64>src | (at << 32), nm_bdg_fwd_src);
}

/**
 * Takes the packet whose first slot is j and holds `w` into `ft`, whole: up to the first slot without NS_MOREFRAG, or
 * to head, which cuts a chain off (what is there is sent, as netmap does). Its number of slots goes to frags of the
 * first entry; 0, and counted, if a slot is bad, there are more than NETMAP_MAX_FRAGS, or the Ethernet header is not
 * whole where it belongs. Returns the slot after the packet.
 */
function scanChain(kr: usize, ft: usize, w: u64, j: u32, head: u32): u32 {
  const ring: usize = load<u32>(kr, kring_ring);
  const n = load<u32>(kr, kring_num_slots);
  const base: usize = load<u32>(kr, kring_buf_base);
  const bufSize = load<u32>(kr, kring_buf_size);
  const bufs = load<u32>(kr, kring_num_bufs);
  let ok = true;
  let frags: u32 = 0;
  let bytes: u32 = 0;
  for (;;) {
    const flags = slotFlags(w);
    if ((flags & NS_BUF_CHANGED) != 0) storeSlotFlags(slotAt(ring, j), flags & ~NS_BUF_CHANGED);
    ok = ok && slotValid(w, bufs, bufSize) && (flags & NS_INDIRECT) == 0 && frags < NETMAP_MAX_FRAGS;
    if (ok) {
      storeFwd(ft + frags * nm_bdg_fwd_size, base + slotIdx(w) * bufSize, slotLen(w), 0, flags);
      frags++;
      bytes += slotLen(w);
    }
    j = j + 1 == n ? 0 : j + 1;
    if ((flags & NS_MOREFRAG) == 0 || j == head) break;
    w = loadSlot(slotAt(ring, j));
  }
  ok = ok && hasEthernet(ft, frags, load<u32>(load<u32>(kr, kring_port), port_vnet_hdr_len));
  store<u8>(ft, ok ? frags : 0, nm_bdg_fwd_frags);
  if (ok) bump(kr + kring_bytes, bytes);
  else bump(kr + kring_drop_bad, 1);
  return j;
}

/**
 * Whether a packet has its Ethernet header where `resolve` looks for it: behind the sender's VirtIO header in the first
 * slot or, if that holds the VirtIO header alone, in the second.
 */
function hasEthernet(ft: usize, frags: u32, hdr: u32): bool {
  const len: u32 = load<u16>(ft, nm_bdg_fwd_len);
  if (len > hdr) return len - hdr >= ETH_HLEN;
  return len == hdr && frags > 1 && <u32>load<u16>(ft + nm_bdg_fwd_size, nm_bdg_fwd_len) >= ETH_HLEN;
}

/**
 * Second pass: takes the VirtIO headers of the packets in `ft`, learns their sources and finds their destinations. A
 * packet whose header is malformed is counted as bad after all, and goes nowhere.
 */
function resolve(d: usize, kr: usize): void {
  const port: usize = load<u32>(kr, kring_port);
  const hdr = load<u32>(port, port_vnet_hdr_len);
  const me = load<u32>(port, port_port_id);
  const end = d + domain_ft + load<u32>(d, domain_num_ft) * nm_bdg_fwd_size;
  let packets: u32 = 0;
  let floods: u32 = 0;
  let noDst: u32 = 0;
  let bad: u32 = 0;
  let badBytes: u32 = 0;
  let ft = d + domain_ft;
  while (ft != end) {
    const len: u32 = load<u16>(ft, nm_bdg_fwd_len);
    const frags: u32 = load<u8>(ft, nm_bdg_fwd_frags);
    const second = ft + nm_bdg_fwd_size;
    const eth: usize = len > hdr ? load<u32>(ft, nm_bdg_fwd_src) + hdr : load<u32>(second, nm_bdg_fwd_src);
    let dst: u32 = DST_NONE;
    if (hdr != 0 && !takeVnet(d, ft, loadHeader(load<u32>(ft, nm_bdg_fwd_src)), packetBytes(ft, frags) - hdr)) {
      bad++;
      badBytes += packetBytes(ft, frags);
    } else {
      dst = lookup(d, me, loadHeader(eth), load<u8>(ft, nm_bdg_fwd_dst));
      packets++;
      if (dst == DST_FLOOD) floods++;
      else if (dst == DST_NONE) noDst++;
    }
    // Both bytes at once: deliverRun reads them at once, and would wait for two stores to leave the store buffer.
    store<u16>(ft, <u16>(frags | (dst << 8)), nm_bdg_fwd_frags);
    ft += frags * nm_bdg_fwd_size;
  }
  bump(kr + kring_packets, packets);
  bump(kr + kring_copies, packets - noDst - floods + floods * (load<u32>(d, domain_num_active) - 1));
  if (noDst != 0) bump(kr + kring_drop_nodst, noDst);
  if (bad == 0) return;
  bump(kr + kring_drop_bad, bad);
  store<u64>(kr, load<u64>(kr, kring_bytes) - badBytes, kring_bytes);
}

/** Third pass: copies the packets of `ft` to their destinations, run by run of packets with the same one. */
function deliver(d: usize, kr: usize): void {
  const port: usize = load<u32>(kr, kring_port);
  const hdr = load<u32>(port, port_vnet_hdr_len);
  const end = d + domain_ft + load<u32>(d, domain_num_ft) * nm_bdg_fwd_size;
  let ft = d + domain_ft;
  while (ft != end) {
    const dst = load<u8>(ft, nm_bdg_fwd_dst);
    if (dst < DST_NONE) {
      const to = at(d + domain_ports, dst);
      const rings = load<u32>(to, port_num_rx_rings);
      if (rings == 1 || load<u32>(port, port_num_tx_rings) != 1) {
        ft = deliverTo(d, to, load<u32>(kr, kring_ring_id), ft, end, hdr);
      } else {
        // A sender that cannot say by its ring: the flow says.
        const next = ft + <u32>load<u8>(ft, nm_bdg_fwd_frags) * nm_bdg_fwd_size;
        ft = deliverTo(d, to, packetRing(ft, hdr, rings), ft, next, hdr);
      }
      continue;
    }
    const run = ft;
    ft = runEnd(ft, end);
    if (dst == DST_NONE) continue;
    // Floods go to ring 0 of everyone else, as in netmap.
    const active = load<u32>(d, domain_num_active);
    for (let i: u32 = 0; i < active; i++) {
      const to = at(d + domain_active, i);
      if (to != port) deliverTo(d, to, 0, run, ft, hdr);
    }
  }
}

/** The ring of a receiver with several that a packet's flow goes to. */
function packetRing(ft: usize, hdr: u32, rings: u32): u32 {
  const len: u32 = load<u16>(ft, nm_bdg_fwd_len);
  if (len > hdr) return flowRing(<usize>load<u32>(ft, nm_bdg_fwd_src) + hdr, len - hdr, rings);
  const second = ft + nm_bdg_fwd_size;
  return flowRing(load<u32>(second, nm_bdg_fwd_src), load<u16>(second, nm_bdg_fwd_len), rings);
}

/** End of the run of packets with the same destination that begins at ft. */
function runEnd(ft: usize, end: usize): usize {
  const dst = load<u8>(ft, nm_bdg_fwd_dst);
  do ft += <u32>load<u8>(ft, nm_bdg_fwd_frags) * nm_bdg_fwd_size;
  while (ft != end && load<u8>(ft, nm_bdg_fwd_dst) == dst);
  return ft;
}

/**
 * Delivers the run of packets that begins at ft to one port, to the ring of that number, modulo the port's rx rings.
 * Returns the end of the run.
 */
function deliverTo(d: usize, port: usize, ring: u32, ft: usize, end: usize, hdr: u32): usize {
  const rings = load<u32>(port, port_num_rx_rings);
  const kr = at(port + port_rx_rings, ring < rings ? ring : ring % rings);
  if (load<u32>(kr, kring_state) != KRING_RUNNING) {
    const stop = runEnd(ft, end);
    for (; ft != stop; ft += <u32>load<u8>(ft, nm_bdg_fwd_frags) * nm_bdg_fwd_size) bump(kr + kring_drop_stopped, 1);
    return stop;
  }
  if (load<u32>(kr, kring_dirty) == 0) {
    store<u32>(kr, 1, kring_dirty);
    push(d + domain_num_dirty, d + domain_dirty, kr);
    rxsync(kr);
  }
  return deliverRun(d, kr, ft, end, hdr, load<u32>(port, port_vnet_hdr_len));
}

/** Free slots of an rx ring: the host owns hwtail .. hwcur - 1, one of which stays empty. */
function rxSpace(hwcur: u32, hwtail: u32, n: u32): u32 {
  return hwcur > hwtail ? hwcur - hwtail - 1 : n - 1 - hwtail + hwcur;
}

/**
 * Copies the run of packets that begins at ft into an rx ring, in order. Each is delivered whole or counted as dropped
 * here (R10). Returns the end of the run.
 * @param hdr, dstHdr bytes of the sender's and the receiver's VirtIO header
 */
function deliverRun(d: usize, kr: usize, ft: usize, end: usize, hdr: u32, dstHdr: u32): usize {
  const ring: usize = load<u32>(kr, kring_ring);
  const n = load<u32>(kr, kring_num_slots);
  const base: usize = load<u32>(kr, kring_buf_base);
  const bufSize = load<u32>(kr, kring_buf_size);
  const bufs = load<u32>(kr, kring_num_bufs);
  const dst = load<u8>(ft, nm_bdg_fwd_dst);
  // frags and dst of a packet that needs nothing special, as one number; none is, if headers have to be converted.
  const plain: u32 = hdr == dstHdr ? 1 | ((<u32>dst) << 8) : 0;
  let tail = load<u32>(kr, kring_hwtail);
  let space = rxSpace(load<u32>(kr, kring_hwcur), tail, n);
  let packets: u32 = 0;
  let bytes: u32 = 0;
  let full: u32 = 0;
  do {
    // Plain packets, as far as there is room and the ring does not wrap.
    const first = slotAt(ring, tail);
    const stop = first + min(space, n - tail) * SLOT_BYTES;
    let slot = first;
    while (slot != stop && load<u16>(ft, nm_bdg_fwd_frags) == plain) {
      const idx = slotIdx(loadSlot(slot));
      const len: u32 = load<u16>(ft, nm_bdg_fwd_len);
      if (!bufValid(idx, bufs) || len > bufSize) break;
      const buf = base + idx * bufSize;
      copyFrame(load<u32>(ft, nm_bdg_fwd_src), buf, len);
      // What was checked is what arrives, whatever the sender does meanwhile.
      if (hdr != 0) storeVnetHdr(buf, loadVnet(d, ft), hdr);
      storeSlot(slot, len, 1 << NS_RFRAGS_SHIFT);
      slot += SLOT_BYTES;
      ft += nm_bdg_fwd_size;
      bytes += len;
      if (ft == end) break;
    }
    const done = slotsBetween(first, slot);
    packets += done;
    space -= done;
    tail = tail + done == n ? 0 : tail + done;
    if (ft == end || load<u8>(ft, nm_bdg_fwd_dst) != dst) break;
    const frags: u32 = load<u8>(ft, nm_bdg_fwd_frags);
    if (hdr != dstHdr) {
      const used = deliverOffload(d, kr, ft, tail, space, hdr, dstHdr);
      tail = tail + used >= n ? tail + used - n : tail + used;
      space -= used;
    } else if (frags > space) {
      full++;
    } else if (slot != stop || load<u16>(ft, nm_bdg_fwd_frags) != plain) {
      const used = deliverChain(d, kr, ft, frags, tail, hdr);
      tail = tail + used >= n ? tail + used - n : tail + used;
      space -= used;
    } else {
      continue;
    }
    ft += frags * nm_bdg_fwd_size;
  } while (ft != end && load<u8>(ft, nm_bdg_fwd_dst) == dst);
  store<u32>(kr, tail, kring_hwtail);
  bump(kr + kring_packets, packets);
  bump(kr + kring_slots, packets);
  bump(kr + kring_bytes, bytes);
  if (full != 0) bump(kr + kring_drop_full, full);
  return ft;
}

/** End of a batch: tells every receiver of it. */
function publishReceivers(d: usize): void {
  const n = load<u32>(d, domain_num_dirty);
  for (let i: u32 = 0; i < n; i++) {
    const kr = at(d + domain_dirty, i);
    store<u32>(kr, 0, kring_dirty);
    publish(d, kr);
  }
  store<u32>(d, 0, domain_num_dirty);
}
