/**
 * The packets that pkt-gen sends: Ethernet, IPv4, UDP and a text, with right checksums (RFC 791, 768, 1071), and the walk
 * through ranges of addresses and ports. One Frame is one packet that is changed in place, copied into a slot's buffer
 * when the buffer does not hold it yet. Nothing here allocates after construction.
 *
 * Mirrors what netmap's pkt-gen sends: DF, TTL 64, TOS low delay, one source port after the other, then addresses.
 */
import type { Views } from '../../api/index.ts';

/** Addresses and ports, both ends included, as numbers. */
export interface IpRange {
  readonly ip0: number;
  readonly ip1: number;
  readonly port0: number;
  readonly port1: number;
}

export interface FrameSpec {
  /** Bytes without CRC, MIN_FRAME to MAX_FRAME. */
  readonly size: number;
  readonly srcMac: readonly number[];
  readonly dstMac: readonly number[];
  readonly src: IpRange;
  readonly dst: IpRange;
  /** Without: UDP's checksum is 0 ("none"), for payloads that change in the buffer. */
  readonly udpChecksum: boolean;
}

/** Ethernet, IPv4 and UDP headers: where the payload begins. */
export const PAYLOAD_OFS = 42;
export const MIN_FRAME = PAYLOAD_OFS;
export const MAX_FRAME = 65535;

const IP = 14;
const UDP = 34;
const TEXT = 'ptnet pkt-gen: netmap passthrough in TypeScript\n';
/** Up to this length a loop over words is faster than TypedArray.set (shared/style.md: measured). */
const SHORT_COPY = 256;

export class Frame {
  /** The packet, padded with zeros to a multiple of 4. */
  readonly bytes: Uint8Array;
  readonly #words: Uint32Array;
  readonly #src: IpRange;
  readonly #dst: IpRange;
  readonly #udpChecksum: boolean;
  /** Sum of the payload's first i 16-bit words. */
  readonly #payloadSums: Uint32Array;
  #size: number;
  #srcIp: number;
  #srcPort: number;
  #dstIp: number;
  #dstPort: number;

  constructor(spec: FrameSpec) {
    this.bytes = new Uint8Array((spec.size + 3) & ~3);
    this.#words = new Uint32Array(this.bytes.buffer);
    this.#src = spec.src;
    this.#dst = spec.dst;
    this.#udpChecksum = spec.udpChecksum;
    this.#size = spec.size;
    this.#srcIp = spec.src.ip0;
    this.#srcPort = spec.src.port0;
    this.#dstIp = spec.dst.ip0;
    this.#dstPort = spec.dst.port0;
    const b = this.bytes;
    b.set(spec.dstMac, 0);
    b.set(spec.srcMac, 6);
    // Ethertype IPv4; version 4, 5 words, low delay; don't fragment; TTL 64, UDP.
    b.set([0x08, 0x00, 0x45, 0x10], 12);
    b.set([0x40, 0x00, 64, 17], IP + 6);
    for (let i = PAYLOAD_OFS; i < spec.size; i++) b[i] = TEXT.charCodeAt((i - PAYLOAD_OFS) % TEXT.length);
    if (spec.size > PAYLOAD_OFS) b[spec.size - 1] = 0;
    const words = (spec.size - PAYLOAD_OFS) >> 1;
    this.#payloadSums = new Uint32Array(words + 1);
    for (let i = 0; i < words; i++) this.#payloadSums[i + 1] = this.#payloadSums[i]! + this.#word(PAYLOAD_OFS + 2 * i);
    this.#writeHeaders();
  }

  /** Bytes of the packet. */
  get size(): number {
    return this.#size;
  }

  /** Makes the packet shorter or longer, at most as long as it was made. */
  setSize(size: number): void {
    this.#size = size;
    this.#writeHeaders();
  }

  /** Goes on to the next source port, source address, destination port, destination address of the ranges. */
  advance(): void {
    const src = this.#src;
    const dst = this.#dst;
    if (this.#srcPort < src.port1) this.#srcPort++;
    else {
      this.#srcPort = src.port0;
      if (this.#srcIp < src.ip1) this.#srcIp++;
      else {
        this.#srcIp = src.ip0;
        if (this.#dstPort < dst.port1) this.#dstPort++;
        else {
          this.#dstPort = dst.port0;
          this.#dstIp = this.#dstIp < dst.ip1 ? this.#dstIp + 1 : dst.ip0;
        }
      }
    }
    this.#writeHeaders();
  }

  /** Copies the packet to `ofs` (a multiple of 4) of a port's memory; up to 3 bytes more than its size. */
  copyTo(m: Views, ofs: number): void {
    if (this.#size <= SHORT_COPY) {
      const to = ofs >>> 2;
      const words = (this.#size + 3) >>> 2;
      for (let i = 0; i < words; i++) m.u32[to + i] = this.#words[i]!;
    } else m.u8.set(this.bytes, ofs);
  }

  #word(at: number): number {
    return (this.bytes[at]! << 8) | this.bytes[at + 1]!;
  }

  #put16(at: number, value: number): void {
    this.bytes[at] = value >>> 8;
    this.bytes[at + 1] = value;
  }

  #put32(at: number, value: number): void {
    this.#put16(at, value >>> 16);
    this.#put16(at + 2, value & 0xffff);
  }

  #writeHeaders(): void {
    const ipLen = this.#size - IP;
    const udpLen = this.#size - UDP;
    const addresses = (this.#srcIp >>> 16) + (this.#srcIp & 0xffff) + (this.#dstIp >>> 16) + (this.#dstIp & 0xffff);
    this.#put16(IP + 2, ipLen);
    this.#put32(IP + 12, this.#srcIp);
    this.#put32(IP + 16, this.#dstIp);
    this.#put16(IP + 10, fold(0x4510 + ipLen + 0x4000 + 0x4011 + addresses));
    this.#put16(UDP, this.#srcPort);
    this.#put16(UDP + 2, this.#dstPort);
    this.#put16(UDP + 4, udpLen);
    if (!this.#udpChecksum) return;
    const payload = this.#size - PAYLOAD_OFS;
    const odd = (payload & 1) === 1 ? this.bytes[this.#size - 1]! << 8 : 0;
    // Pseudo-header (addresses, protocol, length), header, payload.
    const sum = addresses + 17 + udpLen + this.#srcPort + this.#dstPort + udpLen + odd;
    this.#put16(UDP + 6, fold(sum + this.#payloadSums[payload >> 1]!) || 0xffff);
  }
}

/** Internet checksum (RFC 1071) of a sum of 16-bit words. */
function fold(sum: number): number {
  let s = sum;
  while (s > 0xffff) s = (s % 0x10000) + Math.floor(s / 0x10000);
  return ~s & 0xffff;
}
