/**
 * The packets that pkt-gen sends: Ethernet, IPv4 or IPv6, UDP and a text, with right checksums (RFC 791, 8200, 768, 1071),
 * and the walk through ranges of addresses and ports. One Frame is one packet that is changed in place, copied into a slot's buffer
 * when the buffer does not hold it yet. Nothing here allocates after construction.
 *
 * Mirrors what netmap's pkt-gen sends: DF, TTL 64, TOS low delay, one source port after the other, then addresses.
 */
import type { Views } from '../../api/index.ts';

/** Addresses and ports, both ends included, as numbers. */
export interface IpRange {
  /** IPv4: addresses. IPv6: values of the one 16-bit group of `base` that changes. */
  readonly ip0: number;
  readonly ip1: number;
  readonly port0: number;
  readonly port1: number;
  /** IPv6: the address as 8 groups, and which of them changes. */
  readonly base?: readonly number[];
  readonly group?: number;
}

export interface FrameSpec {
  /** Bytes without CRC, MIN_FRAME (IPv6: MIN_FRAME6) to MAX_FRAME. */
  readonly size: number;
  readonly srcMac: readonly number[];
  readonly dstMac: readonly number[];
  /** Both with `base` for IPv6. */
  readonly src: IpRange;
  readonly dst: IpRange;
  /** Without: UDP's checksum is 0 ("none"), for payloads that change in the buffer. */
  readonly udpChecksum: boolean;
  /** Random addresses and ports instead of the ranges' walk. */
  readonly randomSrc?: boolean;
  readonly randomDst?: boolean;
  /** Bytes of an empty VirtIO network header in front of the packet: 0 or 12. */
  readonly vnetHdrLen?: number;
  /** The payload begins with the packet's number (u32, big endian), which `advance` increases. */
  readonly sequence?: boolean;
}

/** Ethernet, IPv4 and UDP headers: where the payload begins. */
export const PAYLOAD_OFS = 42;
export const MIN_FRAME = PAYLOAD_OFS;
export const MIN_FRAME6 = MIN_FRAME + 20;
export const MAX_FRAME = 65535;

const ETHER = 14;
const TEXT = 'ptnet pkt-gen: netmap passthrough in TypeScript\n';
/** Up to this length a loop over words is faster than TypedArray.set (measured). */
const SHORT_COPY = 256;

/** What pkt-gen's loops send: bytes that are copied into buffers. */
export interface Packet {
  /** The packet with its VirtIO header, padded to a multiple of 4. */
  readonly bytes: Uint8Array;
  /** Bytes of the packet, and with its VirtIO header. */
  readonly size: number;
  readonly slotLen: number;
  setSize(size: number): void;
  advance(): void;
  copyTo(m: Views, ofs: number): void;
}

/** Copies words, or sets bytes, of a packet to `ofs` (a multiple of 4). */
function copyPacket(words: Uint32Array, bytes: Uint8Array, length: number, m: Views, ofs: number): void {
  if (length <= SHORT_COPY) {
    const to = ofs >>> 2;
    const n = (length + 3) >>> 2;
    for (let i = 0; i < n; i++) m.u32[to + i] = words[i]!;
  } else m.u8.set(bytes, ofs);
}

/** A packet that somebody else made (-P), sent as it is. */
export class RawPacket implements Packet {
  readonly bytes: Uint8Array;
  readonly size: number;
  readonly slotLen: number;
  readonly #words: Uint32Array;

  constructor(packet: Uint8Array, vnetHdrLen: number) {
    this.size = packet.length;
    this.slotLen = vnetHdrLen + packet.length;
    this.bytes = new Uint8Array((this.slotLen + 3) & ~3);
    this.bytes.set(packet, vnetHdrLen);
    this.#words = new Uint32Array(this.bytes.buffer);
  }
  setSize(): void {
    throw new Error('a packet of a file has one size');
  }
  /** It does not change. */
  advance(): void {}
  copyTo(m: Views, ofs: number): void {
    copyPacket(this.#words, this.bytes, this.slotLen, m, ofs);
  }
}

export class Frame implements Packet {
  readonly bytes: Uint8Array;
  readonly #words: Uint32Array;
  readonly #spec: FrameSpec;
  /** Offsets of the headers and the payload. */
  readonly #ip: number;
  readonly #udp: number;
  readonly #payload: number;
  readonly #v6: boolean;
  /** IPv6: sum of the groups of both addresses that do not change. */
  readonly #baseSum: number;
  /** Sum of the payload's first i 16-bit words. */
  readonly #payloadSums: Uint32Array;
  #size: number;
  #srcIp: number;
  #srcPort: number;
  #dstIp: number;
  #dstPort: number;
  #sequence = 0;

  constructor(spec: FrameSpec) {
    const { src, dst, size, vnetHdrLen = 0 } = spec;
    this.#spec = spec;
    this.#v6 = src.base !== undefined;
    this.#ip = vnetHdrLen + ETHER;
    this.#udp = this.#ip + (this.#v6 ? 40 : 20);
    this.#payload = this.#udp + 8;
    this.bytes = new Uint8Array((vnetHdrLen + size + 3) & ~3);
    this.#words = new Uint32Array(this.bytes.buffer);
    this.#size = size;
    this.#srcIp = src.ip0;
    this.#srcPort = src.port0;
    this.#dstIp = dst.ip0;
    this.#dstPort = dst.port0;
    const b = this.bytes;
    b.set(spec.dstMac, vnetHdrLen);
    b.set(spec.srcMac, vnetHdrLen + 6);
    this.#baseSum = this.#v6 ? this.#putBase(src, this.#ip + 8) + this.#putBase(dst, this.#ip + 24) : 0;
    if (this.#v6) {
      // Ethertype IPv6; version 6, class and flow 0; UDP, hop limit 64.
      b.set([0x86, 0xdd, 0x60, 0, 0, 0], this.#ip - 2);
      b.set([17, 64], this.#ip + 6);
    } else {
      // Ethertype IPv4; version 4, 5 words, low delay; don't fragment; TTL 64, UDP.
      b.set([0x08, 0x00, 0x45, 0x10], this.#ip - 2);
      b.set([0x40, 0x00, 64, 17], this.#ip + 6);
    }
    const end = vnetHdrLen + size;
    for (let i = this.#payload; i < end; i++) b[i] = TEXT.charCodeAt((i - this.#payload) % TEXT.length);
    if (end > this.#payload) b[end - 1] = 0;
    if (spec.sequence) b.fill(0, this.#payload, this.#payload + 4);
    const words = (end - this.#payload) >> 1;
    this.#payloadSums = new Uint32Array(words + 1);
    for (let i = 0; i < words; i++) {
      this.#payloadSums[i + 1] = this.#payloadSums[i]! + this.#word(this.#payload + 2 * i);
    }
    if (spec.randomSrc || spec.randomDst) this.#walk();
    this.#writeHeaders();
  }

  get size(): number {
    return this.#size;
  }

  get slotLen(): number {
    return this.#ip - ETHER + this.#size;
  }

  /** Makes the packet shorter or longer, at most as long as it was made. */
  setSize(size: number): void {
    this.#size = size;
    this.#writeHeaders();
  }

  /** Goes on to the next number, and to the next source port, source address, destination port, destination address of the ranges. */
  advance(): void {
    this.#sequence = (this.#sequence + 1) >>> 0;
    this.#walk();
    this.#writeHeaders();
  }

  #walk(): void {
    const { src, dst, randomSrc, randomDst } = this.#spec;
    if (randomSrc) {
      this.#srcIp = this.#randomIp();
      this.#srcPort = Math.floor(Math.random() * 65536);
    }
    if (randomDst) {
      this.#dstIp = this.#randomIp();
      this.#dstPort = Math.floor(Math.random() * 65536);
    }
    if (randomSrc || this.#advanceSrc(src)) {
      if (!randomDst) this.#advanceDst(dst);
    }
  }

  copyTo(m: Views, ofs: number): void {
    copyPacket(this.#words, this.bytes, this.slotLen, m, ofs);
  }

  /** Whether the walk through the sources is at its beginning again. */
  #advanceSrc(src: IpRange): boolean {
    if (this.#srcPort < src.port1) {
      this.#srcPort++;
      return false;
    }
    this.#srcPort = src.port0;
    if (this.#srcIp < src.ip1) {
      this.#srcIp++;
      return false;
    }
    this.#srcIp = src.ip0;
    return true;
  }

  #advanceDst(dst: IpRange): void {
    if (this.#dstPort < dst.port1) this.#dstPort++;
    else {
      this.#dstPort = dst.port0;
      this.#dstIp = this.#dstIp < dst.ip1 ? this.#dstIp + 1 : dst.ip0;
    }
  }

  #randomIp(): number {
    return Math.floor(Math.random() * (this.#v6 ? 65536 : 2 ** 32));
  }

  /** Writes an IPv6 address; returns the sum of the groups that do not change. */
  #putBase({ base = [], group = 7 }: IpRange, at: number): number {
    for (const [i, value] of base.entries()) this.#put16(at + 2 * i, value);
    return base.reduce((sum, value, i) => (i === group ? sum : sum + value), 0);
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
    const ip = this.#ip;
    const udp = this.#udp;
    const end = this.slotLen;
    const udpLen = end - udp;
    const addresses =
      this.#baseSum + (this.#srcIp >>> 16) + (this.#srcIp & 0xffff) + (this.#dstIp >>> 16) + (this.#dstIp & 0xffff);
    if (this.#v6) {
      this.#put16(ip + 4, udpLen);
      this.#put16(ip + 8 + 2 * (this.#spec.src.group ?? 7), this.#srcIp);
      this.#put16(ip + 24 + 2 * (this.#spec.dst.group ?? 7), this.#dstIp);
    } else {
      const ipLen = end - ip;
      this.#put16(ip + 2, ipLen);
      this.#put32(ip + 12, this.#srcIp);
      this.#put32(ip + 16, this.#dstIp);
      this.#put16(ip + 10, fold(0x4510 + ipLen + 0x4000 + 0x4011 + addresses));
    }
    this.#put16(udp, this.#srcPort);
    this.#put16(udp + 2, this.#dstPort);
    this.#put16(udp + 4, udpLen);
    const number = this.#spec.sequence ? this.#sequence : 0;
    if (this.#spec.sequence) this.#put32(this.#payload, number);
    if (!this.#spec.udpChecksum) return;
    const payload = end - this.#payload;
    const odd = (payload & 1) === 1 ? this.bytes[end - 1]! << 8 : 0;
    // Pseudo-header (addresses, protocol, length), header, payload.
    const numbers = (number >>> 16) + (number & 0xffff);
    const sum = addresses + 17 + udpLen + this.#srcPort + this.#dstPort + udpLen + odd + numbers;
    this.#put16(udp + 6, fold(sum + this.#payloadSums[payload >> 1]!) || 0xffff);
  }
}

/** Internet checksum (RFC 1071) of a sum of 16-bit words. */
function fold(sum: number): number {
  let s = sum;
  while (s > 0xffff) s = (s % 0x10000) + Math.floor(s / 0x10000);
  return ~s & 0xffff;
}
