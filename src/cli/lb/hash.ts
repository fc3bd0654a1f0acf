/**
 * The hash by which lb keeps a connection's packets together: symmetric, so that both directions go the same way. IPv4 and
 * IPv6 by addresses, protocol and ports (fragments without ports), what IP carries in IP by the inner header, the rest by
 * Ethernet addresses. Plays the part of netmap lb's pkt_hash.c, whose hash is another one. Allocates nothing.
 */

const ETHERTYPE_IPV4 = 0x0800;
const ETHERTYPE_IPV6 = 0x86dd;
const VLAN_TAGS = [0x8100, 0x88a8, 0x9100];
const IPPROTO_IPIP = 4;
const IPPROTO_IPV6 = 41;
/** TCP, UDP, DCCP, SCTP, UDP-Lite: their ports come first. */
const PORTS = [6, 17, 33, 132, 136];

/** Whether the last packet hashed was IP. */
export const seen = { ip: false };

/** Hash of the packet at `at`, of which `len` bytes are there: an unsigned 32-bit number. */
export function flowHash(u8: Uint8Array, at: number, len: number): number {
  const end = at + len;
  seen.ip = false;
  if (len < 14) return 0;
  let type = be16(u8, at + 12);
  let p = at + 14;
  for (let tags = 0; tags < 2 && VLAN_TAGS.includes(type) && p + 4 <= end; tags++) {
    type = be16(u8, p + 2);
    p += 4;
  }
  for (let depth = 0; depth < 2; depth++) {
    if (type === ETHERTYPE_IPV4 && p + 20 <= end) {
      seen.ip = true;
      const protocol = u8[p + 9]!;
      const inner = p + (u8[p]! & 15) * 4;
      const fragment = (be16(u8, p + 6) & 0x3fff) !== 0;
      if (protocol === IPPROTO_IPIP && !fragment && depth === 0) p = inner;
      else if (protocol === IPPROTO_IPV6 && !fragment && depth === 0) {
        type = ETHERTYPE_IPV6;
        p = inner;
      } else {
        const ports = !fragment && PORTS.includes(protocol) && inner + 4 <= end ? inner : -1;
        return mix(be32(u8, p + 12), be32(u8, p + 16), protocol, u8, ports);
      }
    } else if (type === ETHERTYPE_IPV6 && p + 40 <= end) {
      seen.ip = true;
      const protocol = u8[p + 6]!;
      const inner = p + 40;
      if (protocol === IPPROTO_IPV6 && depth === 0) p = inner;
      else if (protocol === IPPROTO_IPIP && depth === 0) {
        type = ETHERTYPE_IPV4;
        p = inner;
      } else {
        const ports = PORTS.includes(protocol) && inner + 4 <= end ? inner : -1;
        return mix(fold(u8, p + 8, 4), fold(u8, p + 24, 4), protocol, u8, ports);
      }
    } else break;
  }
  const dst = be32(u8, at + 2) ^ be16(u8, at);
  const src = be32(u8, at + 8) ^ be16(u8, at + 6);
  return mix(src, dst, 0, u8, -1);
}

/** Both addresses and ports enter by operations that do not care which is which. */
function mix(a: number, b: number, protocol: number, u8: Uint8Array, ports: number): number {
  let h = Math.imul(a ^ b, 0x9e3779b1) ^ Math.imul((a + b) | 0, 0x85ebca6b) ^ protocol;
  if (ports >= 0) {
    const s = be16(u8, ports);
    const d = be16(u8, ports + 2);
    h ^= Math.imul((s ^ d) + 1, 0xc2b2ae35) ^ Math.imul(s + d, 0x27d4eb2f);
  }
  h = Math.imul(h ^ (h >>> 16), 0x7feb352d);
  h = Math.imul(h ^ (h >>> 15), 0x846ca68b);
  return (h ^ (h >>> 16)) >>> 0;
}

function be16(u8: Uint8Array, at: number): number {
  return (u8[at]! << 8) | u8[at + 1]!;
}

function be32(u8: Uint8Array, at: number): number {
  return (be16(u8, at) << 16) | be16(u8, at + 2);
}

/** Words of an address, hashed in order. */
function fold(u8: Uint8Array, at: number, words: number): number {
  let h = 0;
  for (let i = 0; i < words; i++) h = Math.imul(h ^ be32(u8, at + 4 * i), 0x01000193);
  return h;
}
