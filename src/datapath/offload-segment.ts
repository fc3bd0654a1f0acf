/**
 * Segmentation: what a network card would do with a packet longer than the MTU. TCP as Linux's tcp_gso_segment and
 * inet_gso_segment do it; UDP (VIRTIO_NET_HDR_GSO_UDP, IPv4) as fragments of IP, as udp4_ufo_fragment does.
 */
import {
  kring_buf_size,
  kring_bytes,
  kring_drop_dst,
  kring_drop_full,
  kring_drop_offload,
  kring_num_slots,
  kring_packets,
  kring_segments,
  kring_slots,
  NETMAP_MAX_FRAGS,
  offload_hdr,
  offload_hdr_len,
  offload_ipv6,
  offload_l3,
  offload_l4,
  offload_sum,
} from './layouts.generated';
import { foldSum, storeFrameByte } from './offload-copy';
import { IPPROTO_TCP, IPV6_HLEN, parseHeaders } from './offload-parse';
import { get16, get32, get8, put16, put32, put8, putCheck, sumHeader } from './offload-scratch';
import {
  closeFrame,
  copyHeaders,
  emit,
  emitSource,
  frameByte,
  openFrame,
  seekFrame,
  skipSlots,
  skipSource,
  slotsOf,
} from './offload-stream';
import { GSO_UDP, vnetGsoSize, vnetGsoType, vnetNeedsCsum } from './offload-vnet';
import { bump, drop } from './private';

const TCP_FIN: u32 = 0x01;
const TCP_PSH: u32 = 0x08;
const TCP_CWR: u32 = 0x80;
const IPV4_MORE_FRAGMENTS: u32 = 0x2000;
/** Largest IP packet. */
const IP_MAX: u32 = 65535;

/**
 * Cuts a packet into frames whose payload is gso_size bytes, the last one shorter. All of them find room or none is
 * delivered. Returns the slots used.
 */
export function segment(o: usize, kr: usize, header: v128, len: u32, tail: u32, space: u32): u32 {
  copyHeaders(o);
  if (!parseHeaders(o, vnetGsoType(header), len)) return drop(kr + kring_drop_offload);
  const udp = vnetGsoType(header) == GSO_UDP;
  const hdrLen = load<u32>(o, offload_hdr_len);
  // Fragments of IP: all but the last have a multiple of 8 bytes.
  const size = udp ? vnetGsoSize(header) & ~7 : vnetGsoSize(header);
  const payload = len - hdrLen;
  if (size == 0 || (udp && load<u32>(o, offload_ipv6) != 0)) return drop(kr + kring_drop_offload);
  const count: u32 = payload <= vnetGsoSize(header) ? 1 : (payload + size - 1) / size;
  const first = count == 1 ? payload : size;
  const last = payload - (count - 1) * size;
  if (hdrLen + first - load<u32>(o, offload_l3) > IP_MAX) return drop(kr + kring_drop_offload);
  const bufSize = load<u32>(kr, kring_buf_size);
  const each = slotsOf(hdrLen + first, bufSize);
  if (each > NETMAP_MAX_FRAGS) return drop(kr + kring_drop_dst);
  if ((count - 1) * each + slotsOf(hdrLen + last, bufSize) > space) return drop(kr + kring_drop_full);
  skipSource(o, hdrLen);
  return udp ? fragmentUdp(o, kr, header, tail, count, size, last) : segmentTcp(o, kr, tail, count, size, last);
}

/** As tcp_gso_segment does: sequence numbers, IP ids go up; FIN and PSH only in the last, CWR only in the first. */
function segmentTcp(o: usize, kr: usize, tail: u32, count: u32, size: u32, last: u32): u32 {
  const n = load<u32>(kr, kring_num_slots);
  const bufSize = load<u32>(kr, kring_buf_size);
  const hdrLen = load<u32>(o, offload_hdr_len);
  const l3 = load<u32>(o, offload_l3);
  const l4 = load<u32>(o, offload_l4);
  const ipv6 = load<u32>(o, offload_ipv6) != 0;
  const id = get16(o, l3 + 4);
  const fragment = get16(o, l3 + 6);
  const seq = get32(o, l4 + 4);
  const flags = get8(o, l4 + 13);
  const addresses = ipv6 ? sumHeader(o, l3 + 8, 32) : sumHeader(o, l3 + 12, 8);
  let used: u32 = 0;
  for (let i: u32 = 0; i < count; i++) {
    const j = tail + used >= n ? tail + used - n : tail + used;
    const body = i + 1 == count ? last : size;
    const slots = slotsOf(hdrLen + body, bufSize);
    const bad = openFrame(o, kr, j, slots);
    if (bad != 0) {
      bump(kr + kring_segments, i);
      return used + skipSlots(kr, j, bad);
    }
    // The payload first: its sum belongs into the header.
    writeBody(o, hdrLen, body);
    const payloadSum: u64 = load<u32>(o, offload_sum);
    fixIp(o, l3, hdrLen + body, id + i, fragment);
    let f = flags;
    if (i + 1 != count) f &= ~(TCP_FIN | TCP_PSH);
    if (i != 0) f &= ~TCP_CWR;
    put32(o, l4 + 4, seq + i * size);
    put8(o, l4 + 13, f);
    put16(o, l4 + 16, 0);
    const pseudo = addresses + bswap<u16>(<u16>IPPROTO_TCP) + bswap<u16>(<u16>(hdrLen - l4 + body));
    putCheck(o, l4 + 16, foldSum(pseudo + sumHeader(o, l4, hdrLen - l4) + payloadSum));
    used += finish(o, kr, j, hdrLen, hdrLen + body);
  }
  bump(kr + kring_segments, count - 1);
  return used;
}

/** UDP over IPv4 longer than the MTU: fragments of IP. The checksum of all goes into the first. */
function fragmentUdp(o: usize, kr: usize, header: v128, tail: u32, count: u32, size: u32, last: u32): u32 {
  const n = load<u32>(kr, kring_num_slots);
  const bufSize = load<u32>(kr, kring_buf_size);
  const hdrLen = load<u32>(o, offload_hdr_len);
  const l3 = load<u32>(o, offload_l3);
  const id = get16(o, l3 + 4);
  let fragment = get16(o, l3 + 6);
  const check = hdrLen + 6;
  let checkLow: usize = 0;
  let checkHigh: usize = 0;
  let sum: u64 = 0;
  let used: u32 = 0;
  for (let i: u32 = 0; i < count; i++) {
    const j = tail + used >= n ? tail + used - n : tail + used;
    const body = i + 1 == count ? last : size;
    const bad = openFrame(o, kr, j, slotsOf(hdrLen + body, bufSize));
    if (bad != 0) {
      bump(kr + kring_segments, i);
      return used + skipSlots(kr, j, bad);
    }
    writeBody(o, hdrLen, body);
    sum += load<u32>(o, offload_sum);
    if (count != 1) fragment = ((i * size) >> 3) | (i + 1 == count ? 0 : IPV4_MORE_FRAGMENTS);
    fixIp(o, l3, hdrLen + body, id, fragment);
    if (i == 0) {
      checkLow = frameByte(o, check);
      checkHigh = frameByte(o, check + 1);
    }
    used += finish(o, kr, j, hdrLen, hdrLen + body);
  }
  if (vnetNeedsCsum(header)) {
    const folded = ~foldSum(sum) & 0xffff;
    storeFrameByte(checkLow, folded == 0 ? 0xff : folded & 0xff);
    storeFrameByte(checkHigh, folded == 0 ? 0xff : folded >> 8);
  }
  bump(kr + kring_segments, count - 1);
  return used;
}

/** Writes the next `body` bytes of what is read behind a frame's headers, and leaves their sum. */
function writeBody(o: usize, hdrLen: u32, body: u32): void {
  seekFrame(o, hdrLen);
  emitSource(o, body);
}

/** Puts the headers in front of a frame of `len` bytes and hands it over. Returns its slots. */
function finish(o: usize, kr: usize, j: u32, hdrLen: u32, len: u32): u32 {
  seekFrame(o, 0);
  emit(o, o + offload_hdr, hdrLen);
  closeFrame(kr, j, len);
  const slots = slotsOf(len, load<u32>(kr, kring_buf_size));
  bump(kr + kring_packets, 1);
  bump(kr + kring_slots, slots);
  bump(kr + kring_bytes, len);
  return slots;
}

/** Length, and for IPv4 identification, fragment offset and checksum, of a frame of `len` bytes. */
function fixIp(o: usize, l3: u32, len: u32, id: u32, fragment: u32): void {
  if (load<u32>(o, offload_ipv6) != 0) {
    put16(o, l3 + 4, len - l3 - IPV6_HLEN);
    return;
  }
  put16(o, l3 + 2, len - l3);
  put16(o, l3 + 4, id);
  put16(o, l3 + 6, fragment);
  put16(o, l3 + 10, 0);
  putCheck(o, l3 + 10, foldSum(sumHeader(o, l3, load<u32>(o, offload_l4) - l3)));
}
