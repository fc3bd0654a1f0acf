/** Random packets with a VirtIO header: TCP and UDP over IPv4 and IPv6, with VLAN tags, options and odd lengths. */
import * as fc from 'fast-check';
import { checksum, GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP, NEEDS_CSUM, vnet } from './naive.ts';

export interface PacketShape {
  readonly ipv6: boolean;
  readonly udp: boolean;
  /** VLAN identifiers, outermost first. */
  readonly vlans: readonly number[];
  /** 32-bit words of IPv4 options, or 8-byte units of an IPv6 extension header. */
  readonly ipOptions: number;
  /** 32-bit words of TCP options. */
  readonly tcpOptions: number;
  readonly payload: number;
  readonly tcpFlags: number;
  readonly id: number;
  readonly seq: number;
  readonly df: boolean;
  readonly tag: number;
  /** gso_size; 0: no segmentation. */
  readonly gsoSize: number;
  readonly ecn: boolean;
  /** NEEDS_CSUM; always with segmentation. */
  readonly csum: boolean;
}

const payload = fc.oneof(
  fc.integer({ min: 0, max: 100 }),
  fc.integer({ min: 0, max: 3000 }),
  fc.integer({ min: 1, max: 60_000 }),
);
export const shape: fc.Arbitrary<PacketShape> = fc.record({
  ipv6: fc.boolean(),
  udp: fc.oneof({ weight: 3, arbitrary: fc.constant(false) }, { weight: 1, arbitrary: fc.constant(true) }),
  vlans: fc.oneof(
    { weight: 3, arbitrary: fc.constant([] as number[]) },
    { weight: 1, arbitrary: fc.array(fc.nat(4095), { maxLength: 3 }) },
  ),
  ipOptions: fc.oneof({ weight: 3, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.nat(10) }),
  tcpOptions: fc.constantFrom(0, 3, 5, 10),
  payload,
  tcpFlags: fc.nat(255),
  id: fc.nat(0xffff),
  seq: fc.nat(0xffff_ffff),
  df: fc.boolean(),
  tag: fc.nat(0xffff),
  gsoSize: fc.oneof(
    { weight: 1, arbitrary: fc.constant(0) },
    { weight: 4, arbitrary: fc.constantFrom(536, 1000, 1001, 1428, 1448, 1460, 8948) },
  ),
  ecn: fc.boolean(),
  csum: fc.boolean(),
});

/** Where the headers of a packet of that shape are. */
export function layout(s: PacketShape): { l3: number; l4: number; end: number } {
  const l3 = 14 + 4 * s.vlans.length;
  const l4 = l3 + (s.ipv6 ? 40 + 8 * Math.min(s.ipOptions, 4) : 20 + 4 * s.ipOptions);
  return { l3, l4, end: l4 + (s.udp ? 8 : 20 + 4 * s.tcpOptions) };
}

/** A packet: VirtIO header of `hdr` bytes, then the frame, its checksum pending (the pseudo header's sum) or complete. */
export function build(s: PacketShape, dst: Uint8Array, src: Uint8Array, hdr = 12): Uint8Array {
  const { l3, l4, end } = layout(s);
  const f = new Uint8Array(end + s.payload);
  const v = new DataView(f.buffer);
  f.set(dst, 0);
  f.set(src, 6);
  s.vlans.forEach((vlan, i) => {
    v.setUint16(12 + 4 * i, i + 1 < s.vlans.length ? 0x88a8 : 0x8100);
    v.setUint16(14 + 4 * i, vlan);
  });
  v.setUint16(l3 - 2, s.ipv6 ? 0x86dd : 0x0800);
  for (let i = end; i < f.length; i++) f[i] = (i * 31 + s.tag * (i >> 8)) & 255;
  const proto = s.udp ? 17 : 6;
  let addresses: Uint8Array;
  if (s.ipv6) {
    v.setUint32(l3, 0x6000_0000 | (s.tag & 0xfffff));
    v.setUint16(l3 + 4, f.length - l3 - 40);
    f[l3 + 6] = l4 === l3 + 40 ? proto : 60;
    f[l3 + 7] = 64;
    f.set([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], l3 + 8);
    f.set([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2], l3 + 24);
    if (l4 > l3 + 40) {
      f[l3 + 40] = proto;
      f[l3 + 41] = (l4 - l3 - 40) / 8 - 1;
      f.set([1, l4 - l3 - 44], l3 + 42); // PadN
    }
    addresses = f.slice(l3 + 8, l3 + 40);
  } else {
    f[l3] = 0x40 | ((l4 - l3) / 4);
    v.setUint16(l3 + 2, Math.min(f.length - l3, 65535));
    v.setUint16(l3 + 4, s.id);
    v.setUint16(l3 + 6, s.df ? 0x4000 : 0);
    f[l3 + 8] = 64;
    f[l3 + 9] = proto;
    f.set([10, 0, 0, 1, 10, 0, 0, 2], l3 + 12);
    f.fill(1, l3 + 20, l4); // options: no operation
    v.setUint16(l3 + 10, checksum(f.subarray(l3, l4)));
    addresses = f.slice(l3 + 12, l3 + 20);
  }
  v.setUint16(l4, 4000 + (s.tag % 1000));
  v.setUint16(l4 + 2, 5001);
  if (s.udp) {
    v.setUint16(l4 + 4, f.length - l4);
  } else {
    v.setUint32(l4 + 4, s.seq);
    v.setUint32(l4 + 8, s.tag);
    f[l4 + 12] = ((end - l4) / 4) << 4;
    f[l4 + 13] = s.tcpFlags;
    v.setUint16(l4 + 14, 512);
    f.fill(1, l4 + 20, end);
  }
  const gso = s.gsoSize > 0;
  const check = l4 + (s.udp ? 6 : 16);
  const pseudo = Uint8Array.of(...addresses, 0, proto, (f.length - l4) >> 8, (f.length - l4) & 255);
  const pending = s.csum || gso;
  if (pending) v.setUint16(check, ~checksum(pseudo) & 0xffff);
  else v.setUint16(check, checksum(Uint8Array.of(...pseudo, ...f.subarray(l4))) || 0xffff);
  const type = s.udp ? GSO_UDP : (s.ipv6 ? GSO_TCPV6 : GSO_TCPV4) | (s.ecn ? GSO_ECN : 0);
  const header = vnet(
    {
      flags: pending ? NEEDS_CSUM : 0,
      gsoType: gso ? type : 0,
      gsoSize: s.gsoSize,
      hdrLen: gso ? end : 0,
      csumStart: pending ? l4 : 0,
      csumOffset: pending ? check - l4 : 0,
    },
    hdr,
  );
  return Uint8Array.of(...header, ...f);
}
