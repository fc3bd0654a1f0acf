/**
 * VALE's second pass: senders' VirtIO headers, and the destinations of the packets in `ft` (netmap_vale.c,
 * nm_vale_preflush; docs/datapath.md).
 *
 * Owner of everything here: the domain's datapath thread.
 */
import {
  DST_FLOOD,
  DST_NONE,
  domain_ft,
  domain_num_active,
  domain_num_ft,
  kring_bytes,
  kring_copies,
  kring_drop_bad,
  kring_drop_nodst,
  kring_packets,
  kring_port,
  NM_BDG_MAXPORTS,
  nm_bdg_fwd_dst,
  nm_bdg_fwd_frags,
  nm_bdg_fwd_len,
  nm_bdg_fwd_size,
  nm_bdg_fwd_src,
  port_port_id,
  port_vnet_hdr_len,
} from './layouts.generated';
import { packetBytes } from './offload-stream';
import { takeVnet } from './offload-vnet';
import { loadHeader } from './peer';
import { bump } from './private';
import { MALFORMED } from './scan';
import { find, learn } from './table';

/** Where an entry of ft, read as one u64, has its number of slots. */
const FRAGS_SHIFT: u64 = 8 * nm_bdg_fwd_frags;

/** Second pass: learns the sources of the packets in `ft` and finds their destinations. */
export function resolve(d: usize, kr: usize): void {
  const hdr = load<u32>(load<u32>(kr, kring_port), port_vnet_hdr_len);
  const end = d + domain_ft + load<u32>(d, domain_num_ft) * nm_bdg_fwd_size;
  if (hdr != 0) takeHeaders(d, kr, end, hdr);
  let ft = resolvePlain(d, kr, d + domain_ft, end, hdr);
  while (ft != end) {
    ft = resolvePacket(d, kr, ft, hdr);
    ft = resolvePlain(d, kr, ft, end, hdr);
  }
}

/**
 * Takes the VirtIO headers of the packets in `ft`. One that is malformed makes its packet a bad one after all, which
 * goes nowhere.
 */
function takeHeaders(d: usize, kr: usize, end: usize, hdr: u32): void {
  for (let ft = d + domain_ft; ft != end; ) {
    const frags: u32 = load<u8>(ft, nm_bdg_fwd_frags);
    const bytes = packetBytes(ft, frags);
    if (!takeVnet(d, ft, loadHeader(load<u32>(ft, nm_bdg_fwd_src)), bytes - hdr)) {
      store<u8>(ft, MALFORMED, nm_bdg_fwd_dst);
      bump(kr + kring_drop_bad, 1);
      store<u64>(kr, load<u64>(kr, kring_bytes) - bytes, kring_bytes);
    }
    ft += frags * nm_bdg_fwd_size;
  }
}

/** `resolve` for packets of one slot without flags. Returns the first entry that is not one, or `end`. */
function resolvePlain(d: usize, kr: usize, ft: usize, end: usize, hdr: u32): usize {
  const me = load<u32>(load<u32>(kr, kring_port), port_port_id);
  const first = ft;
  let floods: u32 = 0;
  let noDst: u32 = 0;
  for (; ft != end; ft += nm_bdg_fwd_size) {
    const entry = load<u64>(ft, nm_bdg_fwd_src);
    if (entry >> FRAGS_SHIFT != 1) break;
    const eth: usize = <u32>entry + hdr;
    learn(d, me, eth, 0);
    const found = find(d, eth);
    let dst = <u32>found;
    if (found >= NM_BDG_MAXPORTS) {
      dst = DST_FLOOD;
      floods++;
    } else if (dst == me) {
      dst = DST_NONE;
      noDst++;
    }
    // Both bytes at once: copyRun reads them at once, and would wait for two stores to leave the store buffer.
    store<u16>(ft, <u16>(1 | (dst << 8)), nm_bdg_fwd_frags);
  }
  countResolved(d, kr, <u32>(ft - first) / nm_bdg_fwd_size, floods, noDst);
  return ft;
}

/** `resolve` for any packet. Returns the entry after it. */
function resolvePacket(d: usize, kr: usize, ft: usize, hdr: u32): usize {
  const me = load<u32>(load<u32>(kr, kring_port), port_port_id);
  const frags: u32 = load<u8>(ft, nm_bdg_fwd_frags);
  const flags: u32 = load<u8>(ft, nm_bdg_fwd_dst);
  const next = ft + frags * nm_bdg_fwd_size;
  if (flags == MALFORMED) {
    store<u8>(ft, DST_NONE, nm_bdg_fwd_dst);
    return next;
  }
  const inFirst = <u32>load<u16>(ft, nm_bdg_fwd_len) > hdr;
  const eth: usize = inFirst ? load<u32>(ft, nm_bdg_fwd_src) + hdr : load<u32>(ft + nm_bdg_fwd_size, nm_bdg_fwd_src);
  learn(d, me, eth, flags);
  const found = find(d, eth);
  let dst = <u32>found;
  if (found >= NM_BDG_MAXPORTS) dst = DST_FLOOD;
  else if (dst == me) dst = DST_NONE;
  countResolved(d, kr, 1, dst == DST_FLOOD ? 1 : 0, dst == DST_NONE ? 1 : 0);
  store<u16>(ft, <u16>(frags | (dst << 8)), nm_bdg_fwd_frags);
  return next;
}

function countResolved(d: usize, kr: usize, packets: u32, floods: u32, noDst: u32): void {
  bump(kr + kring_packets, packets);
  bump(kr + kring_copies, packets - noDst - floods + floods * (load<u32>(d, domain_num_active) - 1));
  if (noDst != 0) bump(kr + kring_drop_nodst, noDst);
}
