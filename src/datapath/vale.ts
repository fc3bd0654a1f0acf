/**
 * VALE: forwarding between the ports of a switch (netmap_vale.c). In groups of FT_GROUP slots, two passes: `scan` takes
 * each slot of the sender once, checks it and looks its destination up (which also brings the frames' first lines into
 * the cache, all at once); `deliver` copies. Between the two, what is known of the slots is in the domain's `ft`.
 *
 * Owner of everything here: the domain's datapath thread.
 */
import { deliverChain } from './chain';
import { copyBuffer, storeVnetHdr } from './copy';
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
  NETMAP_FIRST_BUF,
  NETMAP_MAX_FRAGS,
  NS_BUF_CHANGED,
  NS_INDIRECT,
  NS_MOREFRAG,
  NS_RFRAGS_SHIFT,
  nm_bdg_fwd_dst,
  nm_bdg_fwd_frags,
  nm_bdg_fwd_len,
  nm_bdg_fwd_size,
  nm_bdg_fwd_src,
  port_num_rx_rings,
  port_port_id,
  port_rx_rings,
  port_vnet_hdr_len,
} from './layouts.generated';
import { deliverOffload } from './offload';
import { packetBytes } from './offload-stream';
import { loadVnet, takeVnet } from './offload-vnet';
import { loadHeader, loadSlot, slotAt, slotFlags, slotIdx, slotLen, storeSlot, storeSlotFlags } from './peer';
import { at, bump, push } from './private';
import { lookup } from './table';

/** Slots forwarded before receivers and sender are told (netmap: 1024). Measured: docs/datapath.md. */
const BATCH: u32 = 512;
/** Bytes of an Ethernet header. */
const ETH_HLEN: u32 = 14;
/** Flags of a slot that need a closer look. */
const NS_SLOW: u32 = NS_MOREFRAG | NS_INDIRECT | NS_BUF_CHANGED;

/** Forwards slots hwcur .. rhead - 1 of a tx ring. Returns how many. */
export function valeTxsync(d: usize, kr: usize): u32 {
  const head = load<u32>(kr, kring_rhead);
  const n = load<u32>(kr, kring_num_slots);
  let j = load<u32>(kr, kring_hwcur);
  const todo = head >= j ? head - j : head + n - j;
  while (j != head) {
    let done: u32 = 0;
    do {
      const next = scan(d, kr, j, head);
      deliver(d, kr);
      done += next >= j ? next - j : next + n - j;
      j = next;
    } while (j != head && done < BATCH);
    bump(kr + kring_slots, done);
    store<u32>(kr, j, kring_hwcur);
    store<u32>(kr, j == 0 ? n - 1 : j - 1, kring_hwtail);
    publish(d, kr);
    publishReceivers(d);
  }
  return todo;
}

/**
 * First pass: takes slots of a tx ring from j on, at most to `head`, until FT_GROUP of them are in `ft` (the last chain
 * whole). Packets that go nowhere are counted here. Returns where it stopped.
 */
function scan(d: usize, kr: usize, j: u32, head: u32): u32 {
  const ring: usize = load<u32>(kr, kring_ring);
  const n = load<u32>(kr, kring_num_slots);
  const base: usize = load<u32>(kr, kring_buf_base);
  const bufSize = load<u32>(kr, kring_buf_size);
  const bufs = load<u32>(kr, kring_num_bufs);
  const port: usize = load<u32>(kr, kring_port);
  const hdr = load<u32>(port, port_vnet_hdr_len);
  const me = load<u32>(port, port_port_id);
  const others = load<u32>(d, domain_num_active) - 1;
  const start = d + domain_ft;
  const end = start + FT_GROUP * nm_bdg_fwd_size;
  let ft = start;
  let packets: u32 = 0;
  let bytes: u32 = 0;
  let copies: u32 = 0;
  let bad: u32 = 0;
  let noDst: u32 = 0;
  while (j != head && ft < end) {
    const w = loadSlot(slotAt(ring, j));
    const flags = slotFlags(w);
    let frags: u32 = 1;
    let eth: usize = 0;
    if ((flags & NS_SLOW) == 0) {
      j = j + 1 == n ? 0 : j + 1;
      const len = slotLen(w);
      if (!slotValid(w, bufs, bufSize) || len < hdr + ETH_HLEN) {
        bad++;
        continue;
      }
      const src = base + slotIdx(w) * bufSize;
      if (hdr != 0 && !takeVnet(d, ft, loadHeader(src), len - hdr)) {
        bad++;
        continue;
      }
      storeFwd(ft, src, len);
      bytes += len;
      eth = src + hdr;
    } else {
      j = scanChain(kr, ft, w, j, head);
      frags = load<u8>(ft, nm_bdg_fwd_frags);
      eth = frags == 0 ? 0 : frameStart(ft, frags, hdr);
      const len = packetBytes(ft, frags);
      if (eth == 0 || (hdr != 0 && !takeVnet(d, ft, loadHeader(load<u32>(ft, nm_bdg_fwd_src)), len - hdr))) {
        bad++;
        continue;
      }
      bytes += len;
    }
    const dst = lookup(d, me, loadHeader(eth), flags);
    store<u8>(ft, frags, nm_bdg_fwd_frags);
    store<u8>(ft, dst, nm_bdg_fwd_dst);
    ft += frags * nm_bdg_fwd_size;
    packets++;
    if (dst == DST_NONE) noDst++;
    else copies += dst == DST_FLOOD ? others : 1;
  }
  store<u32>(d, <u32>(ft - start) / nm_bdg_fwd_size, domain_num_ft);
  bump(kr + kring_packets, packets);
  bump(kr + kring_bytes, bytes);
  bump(kr + kring_copies, copies);
  if (bad != 0) bump(kr + kring_drop_bad, bad);
  if (noDst != 0) bump(kr + kring_drop_nodst, noDst);
  return j;
}

function slotValid(w: u64, bufs: u32, bufSize: u32): bool {
  return slotIdx(w) - NETMAP_FIRST_BUF < bufs - NETMAP_FIRST_BUF && slotLen(w) <= bufSize;
}

function storeFwd(ft: usize, src: usize, len: u32): void {
  store<u64>(ft, <u64>src | ((<u64>len) << (8 * nm_bdg_fwd_len)), nm_bdg_fwd_src);
}

/**
 * Takes the packet whose first slot is j and holds `w` into `ft`, whole: up to the first slot without NS_MOREFRAG, or
 * to head, which cuts a chain off (what is there is sent, as netmap does). Its number of slots goes to frags of the
 * first entry; 0 if a slot is bad or there are more than NETMAP_MAX_FRAGS. Returns the slot after the packet.
 */
function scanChain(kr: usize, ft: usize, w: u64, j: u32, head: u32): u32 {
  const ring: usize = load<u32>(kr, kring_ring);
  const n = load<u32>(kr, kring_num_slots);
  const base: usize = load<u32>(kr, kring_buf_base);
  const bufSize = load<u32>(kr, kring_buf_size);
  const bufs = load<u32>(kr, kring_num_bufs);
  let ok = true;
  let frags: u32 = 0;
  for (;;) {
    const flags = slotFlags(w);
    if ((flags & NS_BUF_CHANGED) != 0) storeSlotFlags(slotAt(ring, j), flags & ~NS_BUF_CHANGED);
    ok = ok && slotValid(w, bufs, bufSize) && (flags & NS_INDIRECT) == 0 && frags < NETMAP_MAX_FRAGS;
    if (ok) storeFwd(ft + frags * nm_bdg_fwd_size, base + slotIdx(w) * bufSize, slotLen(w));
    if (ok) frags++;
    j = j + 1 == n ? 0 : j + 1;
    if ((flags & NS_MOREFRAG) == 0 || j == head) break;
    w = loadSlot(slotAt(ring, j));
  }
  store<u8>(ft, ok ? frags : 0, nm_bdg_fwd_frags);
  return j;
}

/**
 * Address of a packet's Ethernet header: behind the sender's VirtIO header, in the first slot or, if that holds the
 * VirtIO header alone, in the second. 0 if it is in neither.
 */
function frameStart(ft: usize, frags: u32, hdr: u32): usize {
  const len = load<u16>(ft, nm_bdg_fwd_len);
  if (len > hdr) return len - hdr >= ETH_HLEN ? <usize>load<u32>(ft, nm_bdg_fwd_src) + hdr : 0;
  if (len < hdr || frags < 2 || load<u16>(ft + nm_bdg_fwd_size, nm_bdg_fwd_len) < ETH_HLEN) return 0;
  return load<u32>(ft + nm_bdg_fwd_size, nm_bdg_fwd_src);
}

/** Second pass: copies the packets of `ft` to their destinations, run by run of packets with the same one. */
function deliver(d: usize, kr: usize): void {
  const port: usize = load<u32>(kr, kring_port);
  const hdr = load<u32>(port, port_vnet_hdr_len);
  const end = d + domain_ft + load<u32>(d, domain_num_ft) * nm_bdg_fwd_size;
  let ft = d + domain_ft;
  while (ft != end) {
    const dst = load<u8>(ft, nm_bdg_fwd_dst);
    const run = ft;
    do ft += <u32>load<u8>(ft, nm_bdg_fwd_frags) * nm_bdg_fwd_size;
    while (ft != end && load<u8>(ft, nm_bdg_fwd_dst) == dst);
    if (dst == DST_FLOOD) {
      // Floods go to ring 0 of everyone else, as in netmap.
      const active = load<u32>(d, domain_num_active);
      for (let i: u32 = 0; i < active; i++) {
        const to = at(d + domain_active, i);
        if (to != port) deliverTo(d, to, 0, run, ft, hdr);
      }
    } else if (dst != DST_NONE) {
      deliverTo(d, at(d + domain_ports, dst), load<u32>(kr, kring_ring_id), run, ft, hdr);
    }
  }
}

/** Delivers a run of packets to one port. The receiving ring has the sender's number, modulo the port's rx rings. */
function deliverTo(d: usize, port: usize, ring: u32, ft: usize, end: usize, hdr: u32): void {
  const rings = load<u32>(port, port_num_rx_rings);
  const kr = at(port + port_rx_rings, ring < rings ? ring : ring % rings);
  if (load<u32>(kr, kring_state) != KRING_RUNNING) {
    bump(kr + kring_drop_stopped, countPackets(ft, end));
    return;
  }
  if (load<u32>(kr, kring_dirty) == 0) {
    store<u32>(kr, 1, kring_dirty);
    push(d + domain_num_dirty, d + domain_dirty, kr);
    rxsync(kr);
  }
  deliverRun(d, kr, ft, end, hdr, load<u32>(port, port_vnet_hdr_len));
}

function countPackets(ft: usize, end: usize): u32 {
  let n: u32 = 0;
  for (; ft != end; ft += <u32>load<u8>(ft, nm_bdg_fwd_frags) * nm_bdg_fwd_size) n++;
  return n;
}

/** Free slots of an rx ring: the host owns hwtail .. hwcur - 1, one of which stays empty. */
export function rxSpace(hwcur: u32, hwtail: u32, n: u32): u32 {
  return hwcur > hwtail ? hwcur - hwtail - 1 : n - 1 - hwtail + hwcur;
}

/**
 * Copies a run of packets into an rx ring, in order. Each is delivered whole or counted as dropped here (R10).
 * @param hdr, dstHdr bytes of the sender's and the receiver's VirtIO header
 */
function deliverRun(d: usize, kr: usize, ft: usize, end: usize, hdr: u32, dstHdr: u32): void {
  const ring: usize = load<u32>(kr, kring_ring);
  const n = load<u32>(kr, kring_num_slots);
  const base: usize = load<u32>(kr, kring_buf_base);
  const bufSize = load<u32>(kr, kring_buf_size);
  const bufs = load<u32>(kr, kring_num_bufs);
  let tail = load<u32>(kr, kring_hwtail);
  let space = rxSpace(load<u32>(kr, kring_hwcur), tail, n);
  let packets: u32 = 0;
  let bytes: u32 = 0;
  let full: u32 = 0;
  do {
    const frags: u32 = load<u8>(ft, nm_bdg_fwd_frags);
    if (hdr != dstHdr) {
      const used = deliverOffload(d, kr, ft, tail, space, hdr, dstHdr);
      tail = tail + used >= n ? tail + used - n : tail + used;
      space -= used;
    } else if (frags > space) {
      full++;
    } else if (frags == 1) {
      const len: u32 = load<u16>(ft, nm_bdg_fwd_len);
      const slot = slotAt(ring, tail);
      const w = loadSlot(slot);
      if (len > bufSize) {
        bump(kr + kring_drop_dst, 1);
      } else {
        tail = tail + 1 == n ? 0 : tail + 1;
        space--;
        if (slotIdx(w) - NETMAP_FIRST_BUF < bufs - NETMAP_FIRST_BUF) {
          const buf = base + slotIdx(w) * bufSize;
          copyBuffer(load<u32>(ft, nm_bdg_fwd_src), buf, len);
          // What was checked is what arrives, whatever the sender does meanwhile.
          if (hdr != 0) storeVnetHdr(buf, loadVnet(d, ft), hdr);
          storeSlot(slot, len, 1 << NS_RFRAGS_SHIFT);
          packets++;
          bytes += len;
        } else {
          storeSlot(slot, 0, 0);
          bump(kr + kring_drop_dst, 1);
        }
      }
    } else {
      const used = deliverChain(d, kr, ft, frags, tail, hdr);
      tail = tail + used >= n ? tail + used - n : tail + used;
      space -= used;
    }
    ft += frags * nm_bdg_fwd_size;
  } while (ft != end);
  store<u32>(kr, tail, kring_hwtail);
  bump(kr + kring_packets, packets);
  bump(kr + kring_slots, packets);
  bump(kr + kring_bytes, bytes);
  if (full != 0) bump(kr + kring_drop_full, full);
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
