/**
 * The VirtIO network header (struct virtio_net_hdr, VirtIO 1.3, 5.1.6), as one private value of 10 bytes:
 * flags u8, gso_type u8, hdr_len u16, gso_size u16, csum_start u16, csum_offset u16. A sender's header is read once, by
 * `takeHeaders` in resolve.ts, checked there, and kept in the domain's `vnet`, one element for each of `ft` (R5).
 */
import { domain_ft, domain_vnet, vnet_ent_header } from './layouts.generated';

const F_NEEDS_CSUM: u32 = 1;
const F_DATA_VALID: u32 = 2;
const GSO_NONE: u32 = 0;
export const GSO_TCPV4: u32 = 1;
export const GSO_UDP: u32 = 3;
export const GSO_TCPV6: u32 = 4;
export const GSO_ECN: u32 = 0x80;

export function vnetFlags(header: v128): u32 {
  return i8x16.extract_lane_u(header, 0);
}
export function vnetGsoType(header: v128): u32 {
  return i8x16.extract_lane_u(header, 1);
}
export function vnetGsoSize(header: v128): u32 {
  return i16x8.extract_lane_u(header, 2);
}
export function vnetCsumStart(header: v128): u32 {
  return i16x8.extract_lane_u(header, 3);
}
export function vnetCsumOffset(header: v128): u32 {
  return i16x8.extract_lane_u(header, 4);
}
export function vnetNeedsCsum(header: v128): bool {
  return (vnetFlags(header) & F_NEEDS_CSUM) != 0;
}

/** Address of the private copy of the header of the packet whose first slot is the entry `ft` of the domain's list. */
function vnetAt(d: usize, ft: usize): usize {
  return d + domain_vnet + ((ft - d - domain_ft) << 1);
}
export function loadVnet(d: usize, ft: usize): v128 {
  return v128.load(vnetAt(d, ft), vnet_ent_header);
}

/**
 * Checks a sender's header and keeps it. False: malformed, the packet must not go anywhere.
 * @param len bytes of the packet behind the header
 */
export function takeVnet(d: usize, ft: usize, header: v128, len: u32): bool {
  v128.store(vnetAt(d, ft), header, vnet_ent_header);
  if (i64x2.extract_lane(header, 0) == 0 && vnetCsumOffset(header) == 0) return true;
  if ((vnetFlags(header) & ~(F_NEEDS_CSUM | F_DATA_VALID)) != 0) return false;
  if (vnetNeedsCsum(header) && vnetCsumStart(header) + vnetCsumOffset(header) + 2 > len) return false;
  const type = vnetGsoType(header);
  if (type == GSO_NONE) return true;
  const kind = type & ~GSO_ECN;
  if (kind != GSO_TCPV4 && kind != GSO_TCPV6 && type != GSO_UDP) return false;
  return vnetGsoSize(header) != 0;
}
