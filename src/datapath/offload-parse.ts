/**
 * The protocol headers of a packet that has to be segmented, in its private copy (offload.hdr). Mirrors the header walk
 * of bdg_mismatch_datapath (netmap_offloadings.c); unlike it, IPv6 extension headers are passed over, fragments refused.
 */
import { OFFLOAD_HDR_BYTES, offload_hdr_len, offload_ipv6, offload_l3, offload_l4 } from './layouts.generated';
import { get16, get8 } from './offload-scratch';
import { GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP } from './offload-vnet';

const ETH_HLEN: u32 = 14;
const VLAN_HLEN: u32 = 4;
const ETHERTYPE_VLAN: u32 = 0x8100;
const ETHERTYPE_QINQ: u32 = 0x88a8;
const ETHERTYPE_IPV4: u32 = 0x0800;
const ETHERTYPE_IPV6: u32 = 0x86dd;
export const IPPROTO_TCP: u32 = 6;
export const IPPROTO_UDP: u32 = 17;
const IPV6_HOP_BY_HOP: u32 = 0;
const IPV6_DESTINATION: u32 = 60;
export const IPV6_HLEN: u32 = 40;
/** More fragments, fragment offset. */
const IPV4_FRAGMENT: u32 = 0x3fff;

/**
 * Finds the headers; l3, l4, ipv6 and hdr_len (end of the headers that each segment gets) are set.
 * @param type gso_type @param len bytes of the packet; hdr has the first of them
 * @returns false if they are not there, or not what the gso_type says
 */
export function parseHeaders(o: usize, type: u32, len: u32): bool {
  const have = len < OFFLOAD_HDR_BYTES ? len : OFFLOAD_HDR_BYTES;
  let l3 = ETH_HLEN;
  if (have < l3) return false;
  let ethertype = get16(o, l3 - 2);
  while (ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ) {
    l3 += VLAN_HLEN;
    if (have < l3) return false;
    ethertype = get16(o, l3 - 2);
  }
  const ipv6 = ethertype == ETHERTYPE_IPV6;
  if (!ipv6 && ethertype != ETHERTYPE_IPV4) return false;
  const kind = type & ~GSO_ECN;
  if (kind != GSO_UDP && kind != (ipv6 ? GSO_TCPV6 : GSO_TCPV4)) return false;
  const proto = kind == GSO_UDP ? IPPROTO_UDP : IPPROTO_TCP;
  const l4 = ipv6 ? parseIpv6(o, l3, have, proto) : parseIpv4(o, l3, have, proto);
  if (l4 == 0 || have < l4 + 8) return false;
  let end = l4;
  if (proto == IPPROTO_TCP) {
    if (have < l4 + 20) return false;
    const tcp = (get8(o, l4 + 12) >> 4) << 2;
    end = l4 + tcp;
    if (tcp < 20 || have < end) return false;
  }
  store<u32>(o, l3, offload_l3);
  store<u32>(o, l4, offload_l4);
  store<u32>(o, end, offload_hdr_len);
  store<u32>(o, ipv6 ? 1 : 0, offload_ipv6);
  return true;
}

/** Where the header behind an IPv4 header begins, 0 if there is none that serves. */
function parseIpv4(o: usize, l3: u32, have: u32, proto: u32): u32 {
  if (have < l3 + 20) return 0;
  const first = get8(o, l3);
  const ihl = (first & 15) << 2;
  if (first >> 4 != 4 || ihl < 20 || have < l3 + ihl) return 0;
  if (get8(o, l3 + 9) != proto || (get16(o, l3 + 6) & IPV4_FRAGMENT) != 0) return 0;
  return l3 + ihl;
}

/** The same for IPv6, behind extension headers that every segment repeats. */
function parseIpv6(o: usize, l3: u32, have: u32, proto: u32): u32 {
  if (have < l3 + IPV6_HLEN || get8(o, l3) >> 4 != 6) return 0;
  let next = get8(o, l3 + 6);
  let p = l3 + IPV6_HLEN;
  while (next == IPV6_HOP_BY_HOP || next == IPV6_DESTINATION) {
    if (have < p + 8) return 0;
    next = get8(o, p);
    p += (get8(o, p + 1) + 1) << 3;
  }
  return next == proto && have >= p ? p : 0;
}
