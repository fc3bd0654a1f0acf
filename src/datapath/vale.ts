/**
 * VALE: forwarding between the ports of a switch (netmap_vale.c). In groups of FT_GROUP slots, three passes: `scan`
 * (scan.ts) takes each slot of the sender once and checks it, `resolve` (resolve.ts) learns and looks up, `deliver`
 * copies. Between them, what is known of the slots is in the domain's `ft`. Each is a short loop that keeps its state in
 * registers (docs/datapath.md).
 *
 * Owner of everything here: the domain's datapath thread.
 */
import { deliverChain } from './chain';
import { copyFrame, copyLong, SHORT, storeVnetHdr, touch } from './copy';
import { flowRing } from './flow';
import { publish, rxsync } from './kring';
import {
  DST_NONE,
  domain_active,
  domain_dirty,
  domain_ft,
  domain_num_active,
  domain_num_dirty,
  domain_num_ft,
  domain_ports,
  KRING_RUNNING,
  kring_buf_base,
  kring_buf_size,
  kring_bytes,
  kring_dirty,
  kring_drop_full,
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
  NS_RFRAGS_SHIFT,
  nm_bdg_fwd_dst,
  nm_bdg_fwd_frags,
  nm_bdg_fwd_len,
  nm_bdg_fwd_size,
  nm_bdg_fwd_src,
  port_num_rx_rings,
  port_num_tx_rings,
  port_rx_rings,
  port_vnet_hdr_len,
} from './layouts.generated';
import { deliverOffload } from './offload';
import { loadVnet } from './offload-vnet';
import { bufValid, loadSlot, slotAt, slotIdx, storeSlot } from './peer';
import { at, bump, push } from './private';
import { resolve } from './resolve';
import { scan } from './scan';

/** Slots of a ring forwarded in a turn, before receivers and sender are told (netmap: 1024). */
const BATCH: u32 = 512;
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
  const dst = load<u8>(ft, nm_bdg_fwd_dst);
  // frags and dst of a packet that needs nothing special, as one number; none is, if headers have to be converted.
  const plain: u32 = hdr == dstHdr ? 1 | ((<u32>dst) << 8) : 0;
  let tail = load<u32>(kr, kring_hwtail);
  let space = rxSpace(load<u32>(kr, kring_hwcur), tail, n);
  let full: u32 = 0;
  do {
    // Plain packets, as far as there is room and the ring does not wrap.
    const room = min(min(space, n - tail), <u32>(end - ft) / nm_bdg_fwd_size);
    const next = copyRun(d, kr, ft, ft + room * nm_bdg_fwd_size, slotAt(ring, tail), plain, hdr);
    const done = <u32>(next - ft) / nm_bdg_fwd_size;
    ft = next;
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
    } else if (done < room || load<u16>(ft, nm_bdg_fwd_frags) != plain) {
      const used = deliverChain(d, kr, ft, frags, tail, hdr);
      tail = tail + used >= n ? tail + used - n : tail + used;
      space -= used;
    } else {
      continue;
    }
    ft += frags * nm_bdg_fwd_size;
  } while (ft != end && load<u8>(ft, nm_bdg_fwd_dst) == dst);
  store<u32>(kr, tail, kring_hwtail);
  if (full != 0) bump(kr + kring_drop_full, full);
  return ft;
}

/**
 * Copies plain packets to the slots from `slot` on, and counts them. Returns the first entry of ft that is not one, or
 * whose slot or buffer at the receiver will not do, or `end`.
 */
function copyRun(d: usize, kr: usize, ft: usize, end: usize, slot: usize, plain: u32, hdr: u32): usize {
  const base: usize = load<u32>(kr, kring_buf_base);
  const bufSize = load<u32>(kr, kring_buf_size);
  const bufs = load<u32>(kr, kring_num_bufs);
  const first = ft;
  const last = end - nm_bdg_fwd_size;
  // A slot is as large as two entries: one variable less in the loop.
  const ofs = slot - 2 * ft;
  let bytes: u32 = 0;
  for (; ft != end; ft += nm_bdg_fwd_size) {
    if (<u32>load<u16>(ft, nm_bdg_fwd_frags) != plain) break;
    const to = ofs + 2 * ft;
    const idx = slotIdx(loadSlot(to));
    const len: u32 = load<u16>(ft, nm_bdg_fwd_len);
    if (!bufValid(idx, bufs)) break;
    if (len > bufSize) break;
    const src: usize = load<u32>(ft, nm_bdg_fwd_src);
    const buf = base + idx * bufSize;
    if (len > SHORT) {
      if (ft != last)
        touch(load<u32>(ft + nm_bdg_fwd_size, nm_bdg_fwd_src), load<u16>(ft + nm_bdg_fwd_size, nm_bdg_fwd_len));
      copyLong(src, buf, len);
    } else copyFrame(src, buf, len);
    // What was checked is what arrives, whatever the sender does meanwhile.
    if (hdr != 0) storeVnetHdr(buf, loadVnet(d, ft), hdr);
    storeSlot(to, len, 1 << NS_RFRAGS_SHIFT);
    bytes += len;
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
    publish(d, kr);
  }
  store<u32>(d, 0, domain_num_dirty);
}
