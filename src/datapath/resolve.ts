/**
 * What is to be known of the packets in `ft` before they are copied: senders' VirtIO headers, and destinations
 * (netmap_vale.c, nm_vale_preflush; docs/datapath.md).
 *
 * Owner of everything here: the domain's datapath thread.
 */
import {
  domain_ft,
  kring_bytes,
  kring_drop_bad,
  nm_bdg_fwd_flags,
  nm_bdg_fwd_frags,
  nm_bdg_fwd_len,
  nm_bdg_fwd_size,
  nm_bdg_fwd_src,
} from './layouts.generated';
import { packetBytes } from './offload-stream';
import { takeVnet } from './offload-vnet';
import { loadHeader } from './peer';
import { bump } from './private';
import { find, learn } from './table';

/** Flags of a packet whose VirtIO header is malformed: it goes nowhere. */
export const MALFORMED: u32 = 0xff;
/** Flags of a packet of one slot that is known to go to all ports. */
export const FLOODED: u32 = 0xfe;

/** Takes the VirtIO headers of the packets in `ft`. One that is malformed makes its packet a bad one after all. */
export function takeHeaders(d: usize, kr: usize, end: usize, hdr: u32): void {
  for (let ft = d + domain_ft; ft != end; ) {
    const frags: u32 = load<u8>(ft, nm_bdg_fwd_frags);
    const bytes = packetBytes(ft, frags);
    if (!takeVnet(d, ft, loadHeader(load<u32>(ft, nm_bdg_fwd_src)), bytes - hdr)) {
      store<u8>(ft, MALFORMED, nm_bdg_fwd_flags);
      bump(kr + kring_drop_bad, 1);
      store<u64>(kr, load<u64>(kr, kring_bytes) - bytes, kring_bytes);
    }
    ft += frags * nm_bdg_fwd_size;
  }
}

/** Learns the source of the packet at `ft`. Returns its destination, as `find` does. */
export function destination(d: usize, me: u32, ft: usize, hdr: u32): u64 {
  const inFirst = <u32>load<u16>(ft, nm_bdg_fwd_len) > hdr;
  const eth: usize = inFirst ? load<u32>(ft, nm_bdg_fwd_src) + hdr : load<u32>(ft + nm_bdg_fwd_size, nm_bdg_fwd_src);
  learn(d, me, eth, load<u8>(ft, nm_bdg_fwd_flags));
  return find(d, eth);
}
