/**
 * The VirtIO offloads as plainly as they can be said, on whole packets: what the datapath is compared with.
 * Independent of src/datapath: byte arrays, no cursors, no sums that are carried along.
 */

/** A VirtIO network header's fields. */
export interface VnetHeader {
  flags?: number;
  gsoType?: number;
  hdrLen?: number;
  gsoSize?: number;
  csumStart?: number;
  csumOffset?: number;
}

export const NEEDS_CSUM = 1;
export const DATA_VALID = 2;
export const GSO_TCPV4 = 1;
export const GSO_UDP = 3;
export const GSO_TCPV6 = 4;
export const GSO_ECN = 0x80;

/** The header as bytes. @param bytes 10 or 12 */
export function vnet(h: VnetHeader, bytes = 12): Uint8Array {
  const out = new Uint8Array(bytes);
  const v = new DataView(out.buffer);
  out[0] = h.flags ?? 0;
  out[1] = h.gsoType ?? 0;
  v.setUint16(2, h.hdrLen ?? 0, true);
  v.setUint16(4, h.gsoSize ?? 0, true);
  v.setUint16(6, h.csumStart ?? 0, true);
  v.setUint16(8, h.csumOffset ?? 0, true);
  return out;
}

function parse(packet: Uint8Array): Required<VnetHeader> {
  const u16 = (i: number): number => packet[i]! | (packet[i + 1]! << 8);
  return {
    flags: packet[0]!,
    gsoType: packet[1]!,
    hdrLen: u16(2),
    gsoSize: u16(4),
    csumStart: u16(6),
    csumOffset: u16(8),
  };
}

const be16 = (f: Uint8Array, i: number): number => (f[i]! << 8) | f[i + 1]!;
function put16(f: Uint8Array, i: number, value: number): void {
  f[i] = (value >>> 8) & 255;
  f[i + 1] = value & 255;
}

/** RFC 1071: the complement of the ones' complement sum of big-endian words. */
export function checksum(bytes: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) {
    sum += (bytes[i]! << 8) | (bytes[i + 1] ?? 0);
    if (sum > 0xffff) sum -= 0xffff;
  }
  return ~sum & 0xffff;
}

/** Whether a packet's VirtIO header is one that must not go anywhere. */
export function malformed(packet: Uint8Array, hdr: number): boolean {
  const h = parse(packet);
  if ((h.flags & ~3) !== 0) return true;
  if ((h.flags & NEEDS_CSUM) !== 0 && h.csumStart + h.csumOffset + 2 > packet.length - hdr) return true;
  if (h.gsoType === 0) return false;
  const known = [GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_TCPV4 | GSO_ECN, GSO_TCPV6 | GSO_ECN].includes(h.gsoType);
  return !known || h.gsoSize === 0;
}

/**
 * What a port with a header of `dstHdr` bytes gets of a packet whose header has `hdr` bytes and is not malformed:
 * frames, or undefined if the offload cannot be done.
 */
export function convert(packet: Uint8Array, hdr: number, dstHdr: number): Uint8Array[] | undefined {
  const frame = packet.slice(hdr);
  if (dstHdr > 0) {
    const out = new Uint8Array(dstHdr + frame.length);
    if (hdr > 0) out.set(packet.subarray(0, 10));
    out.set(frame, dstHdr);
    return [out];
  }
  if (hdr === 0) return [frame];
  const h = parse(packet);
  if (h.gsoType !== 0) return segments(frame, h);
  if ((h.flags & NEEDS_CSUM) !== 0) {
    put16(frame, h.csumStart + h.csumOffset, checksum(frame.subarray(h.csumStart)) || 0xffff);
  }
  return [frame];
}

interface Headers {
  readonly l3: number;
  readonly l4: number;
  readonly ipv6: boolean;
}

function headers(frame: Uint8Array, proto: number): Headers | undefined {
  const have = Math.min(frame.length, 256);
  let l3 = 14;
  while (l3 <= have && [0x8100, 0x88a8].includes(be16(frame, l3 - 2))) l3 += 4;
  if (l3 > have) return undefined;
  const type = be16(frame, l3 - 2);
  if (type === 0x0800) {
    if (have < l3 + 20) return undefined;
    const l4 = l3 + 4 * (frame[l3]! & 15);
    const whole = (be16(frame, l3 + 6) & 0x3fff) === 0;
    if (frame[l3]! >> 4 !== 4 || l4 < l3 + 20 || l4 > have || frame[l3 + 9] !== proto || !whole) return undefined;
    return { l3, l4, ipv6: false };
  }
  if (type !== 0x86dd || have < l3 + 40 || frame[l3]! >> 4 !== 6) return undefined;
  let l4 = l3 + 40;
  let next = frame[l3 + 6]!;
  while (next === 0 || next === 60) {
    if (have < l4 + 8) return undefined;
    next = frame[l4]!;
    l4 += 8 * (frame[l4 + 1]! + 1);
  }
  return next === proto && l4 <= have ? { l3, l4, ipv6: true } : undefined;
}

function segments(frame: Uint8Array, h: Required<VnetHeader>): Uint8Array[] | undefined {
  const udp = h.gsoType === GSO_UDP;
  const at = headers(frame, udp ? 17 : 6);
  if (at === undefined) return undefined;
  const { l3, l4, ipv6 } = at;
  if (!udp && ipv6 !== ((h.gsoType & ~GSO_ECN) === GSO_TCPV6)) return undefined;
  if (udp) return ipv6 ? undefined : fragments(frame, h, at);
  const have = Math.min(frame.length, 256);
  if (have < l4 + 20) return undefined;
  const end = l4 + 4 * (frame[l4 + 12]! >> 4);
  if (end < l4 + 20 || end > have) return undefined;
  const payload = frame.subarray(end);
  if (end - l3 + Math.min(payload.length, h.gsoSize) > 65535) return undefined;
  const count = Math.max(1, Math.ceil(payload.length / h.gsoSize));
  return Array.from({ length: count }, (_, i) => {
    const body = payload.subarray(i * h.gsoSize, (i + 1) * h.gsoSize);
    const f = Uint8Array.of(...frame.subarray(0, end), ...body);
    if (ipv6) put16(f, l3 + 4, f.length - l3 - 40);
    else ipv4(f, l3, l4, be16(frame, l3 + 4) + i, be16(frame, l3 + 6));
    const view = new DataView(f.buffer);
    view.setUint32(l4 + 4, view.getUint32(l4 + 4) + i * h.gsoSize);
    if (i + 1 < count) f[l4 + 13]! &= ~0x09;
    if (i > 0) f[l4 + 13]! &= ~0x80;
    put16(f, l4 + 16, 0);
    const addresses = ipv6 ? f.subarray(l3 + 8, l3 + 40) : f.subarray(l3 + 12, l3 + 20);
    const length = f.length - l4;
    const pseudo = Uint8Array.of(...addresses, 0, 6, length >> 8, length & 255);
    put16(f, l4 + 16, checksum(Uint8Array.of(...pseudo, ...f.subarray(l4))));
    return f;
  });
}

function fragments(frame: Uint8Array, h: Required<VnetHeader>, at: Headers): Uint8Array[] | undefined {
  const { l3, l4 } = at;
  const size = h.gsoSize & ~7;
  if (frame.length < l4 + 8 || Math.min(frame.length, 256) < l4 + 8 || size === 0) return undefined;
  const whole = frame.slice(l4);
  if (l4 - l3 + Math.min(h.gsoSize, whole.length) > 65535) return undefined;
  if ((h.flags & NEEDS_CSUM) !== 0) put16(whole, 6, checksum(whole) || 0xffff);
  const count = whole.length <= h.gsoSize ? 1 : Math.ceil(whole.length / size);
  return Array.from({ length: count }, (_, i) => {
    const f = Uint8Array.of(
      ...frame.subarray(0, l4),
      ...(count === 1 ? whole : whole.subarray(i * size, (i + 1) * size)),
    );
    const more = i + 1 < count ? 0x2000 : 0;
    const place = count === 1 ? be16(frame, l3 + 6) : more | ((i * size) >> 3);
    ipv4(f, l3, l4, be16(frame, l3 + 4), place);
    return f;
  });
}

function ipv4(f: Uint8Array, l3: number, l4: number, id: number, fragment: number): void {
  put16(f, l3 + 2, f.length - l3);
  put16(f, l3 + 4, id);
  put16(f, l3 + 6, fragment);
  put16(f, l3 + 10, 0);
  put16(f, l3 + 10, checksum(f.subarray(l3, l4)));
}
