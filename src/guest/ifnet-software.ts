/**
 * Receive offloads that an interface has turned off, done in software before the stack sees the packet: -rxcsum
 * completes pending checksums and vouches for none, -lro cuts TCP segments longer than the MTU. Packet by packet, on
 * copies; not made for speed. (Without these options the stack itself takes packets as they are.)
 */

const F_NEEDS_CSUM = 1;
const GSO_TCPV4 = 1;
const GSO_TCPV6 = 4;
const GSO_ECN = 0x80;
const TCP_FIN_PSH = 0x09;
const TCP_CWR = 0x80;

const be16 = (f: Uint8Array, i: number): number => (f[i]! << 8) | f[i + 1]!;
function store16(f: Uint8Array, i: number, value: number): void {
  f[i] = value >>> 8;
  f[i + 1] = value;
}

/** RFC 1071, folded, not complemented, on top of `sum`. */
function add(sum: number, f: Uint8Array, from: number, to: number): number {
  for (let i = from; i < to; i += 2) sum += i + 1 < to ? be16(f, i) : f[i]! << 8;
  while (sum > 0xffff) sum = (sum & 0xffff) + Math.floor(sum / 65536);
  return sum;
}

/**
 * A received packet as the frames, each with a VirtIO header of `hdr` bytes, that the stack is to get.
 * A packet that cannot be cut is left out.
 */
export function softwareReceive(
  packet: Uint8Array,
  hdr: number,
  on: { readonly rxcsum: boolean; readonly lro: boolean },
): Uint8Array[] {
  const header = packet.slice(0, hdr);
  const frame = packet.subarray(hdr);
  const view = new DataView(header.buffer);
  const type = header[1]! & ~GSO_ECN;
  const pending = (header[0]! & F_NEEDS_CSUM) !== 0;
  const start = view.getUint16(6, true);
  const check = start + view.getUint16(8, true);
  if (pending && check + 2 > frame.length) return [];
  const cut = type === GSO_TCPV4 || type === GSO_TCPV6;
  const frames = cut && !on.lro ? segments(frame, start, view.getUint16(4, true), type === GSO_TCPV6) : [frame];
  if (cut && !on.lro) header.fill(0);
  else if (!on.rxcsum) {
    if (pending) store16(frame, check, ~add(0, frame, start, frame.length) & 0xffff || 0xffff);
    header.fill(0);
  }
  return frames.map((f) => Uint8Array.from(Buffer.concat([header, f])));
}

/** TCP over IP cut into frames with `size` bytes of payload. @param l4 where the TCP header begins */
function segments(frame: Uint8Array, l4: number, size: number, ipv6: boolean): Uint8Array[] {
  let l3 = 14;
  while (be16(frame, l3 - 2) === 0x8100 || be16(frame, l3 - 2) === 0x88a8) l3 += 4;
  const hdrLen = l4 + 4 * (frame[l4 + 12]! >> 4);
  if (size === 0 || l4 < l3 + (ipv6 ? 40 : 20) || hdrLen < l4 + 20 || hdrLen > frame.length) return [];
  const seq = new DataView(frame.buffer, frame.byteOffset).getUint32(l4 + 4);
  const out: Uint8Array[] = [];
  for (let at = hdrLen, i = 0; at < frame.length || i === 0; at += size, i++) {
    const last = at + size >= frame.length;
    const f = Uint8Array.from(Buffer.concat([frame.subarray(0, hdrLen), frame.subarray(at, at + size)]));
    if (ipv6) {
      store16(f, l3 + 4, f.length - l3 - 40);
    } else {
      store16(f, l3 + 2, f.length - l3);
      store16(f, l3 + 4, be16(f, l3 + 4) + i);
      store16(f, l3 + 10, 0);
      store16(f, l3 + 10, ~add(0, f, l3, l4));
    }
    new DataView(f.buffer).setUint32(l4 + 4, seq + i * size);
    if (!last) f[l4 + 13]! &= ~TCP_FIN_PSH;
    if (i > 0) f[l4 + 13]! &= ~TCP_CWR;
    store16(f, l4 + 16, 0);
    const addresses = ipv6 ? add(0, f, l3 + 8, l3 + 40) : add(0, f, l3 + 12, l3 + 20);
    store16(f, l4 + 16, ~add(addresses + 6 + f.length - l4, f, l4, f.length));
    out.push(f);
  }
  return out;
}
