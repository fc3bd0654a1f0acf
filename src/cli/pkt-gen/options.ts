/**
 * pkt-gen's options, by netmap's letters, from text to numbers. Entry point: parseJob. A wrong value is a UsageError that
 * names the option and what is allowed.
 */
import { UsageError } from '../errors.ts';
import { whole } from '../numbers.ts';
import { portName } from '../port-names.ts';
import { ipv4Range, ipv6Range } from './addresses.ts';
import { type IpRange, MAX_FRAME, MIN_FRAME, MIN_FRAME6 } from './frame.ts';
import { SEQUENCE_PAYLOAD } from './sequence.ts';

export const FUNCTIONS = ['tx', 'rx', 'ping', 'pong', 'txseq', 'rxseq'] as const;
export type PktGenFunction = (typeof FUNCTIONS)[number];

/** The options as commander gives them. */
export interface PktGenFlags {
  i?: string;
  f?: string;
  n?: string;
  l?: string[];
  b?: string;
  d?: string;
  s?: string;
  D?: string;
  S?: string;
  T?: string;
  w?: string;
  R?: string;
  F?: string;
  M?: string;
  C?: string;
  H?: string;
  P?: string;
  a?: string;
  c?: string;
  p?: string;
  o?: string[];
  4?: boolean;
  6?: boolean;
  z?: boolean;
  Z?: boolean;
  r?: boolean;
  A?: boolean;
  I?: boolean;
  X?: boolean;
  W?: boolean;
  N?: boolean;
  B?: boolean;
  v?: boolean;
  json?: boolean;
}

/** What to do. */
export interface Job {
  readonly port: string;
  readonly func: PktGenFunction;
  /** Packets (tx, rx) or round trips (ping, pong); 0 has no end. */
  readonly count: number;
  /** Bytes of a packet without CRC; with `minSize` the longest. */
  readonly size: number;
  /** Not 0: sizes are random from it to below `size`. */
  readonly minSize: number;
  /** Most packets sent or received at a time. */
  readonly burst: number;
  readonly src: IpRange;
  readonly dst: IpRange;
  readonly srcMac: readonly number[] | undefined;
  readonly dstMac: readonly number[];
  readonly reportMs: number;
  readonly waitSeconds: number;
  /** Packets a second, 0 without limit. */
  readonly rate: number;
  /** tx: write the packet into each buffer, also where it is already. */
  readonly alwaysCopy: boolean;
  /** Slots of a packet. */
  readonly frags: number;
  /** Bytes of a fragment, if smaller than `size / frags`; 0: the buffer's size. */
  readonly fragSize: number;
  /** A capture whose first packet is sent. */
  readonly packetFile: string | undefined;
  readonly randomSrc: boolean;
  readonly randomDst: boolean;
  /** tx: whatever is in the buffers. */
  readonly rubbish: boolean;
  /** Bytes of the VirtIO network header, 0 or 12. */
  readonly vnetHdrLen: number;
  /** Mean and deviation of the rate in each report. */
  readonly rateStats: boolean;
  readonly threads: number;
  /** CPU of the first thread; -1: wherever the system likes. */
  readonly cpu: number;
  /** How many CPUs, from `cpu` on, threads are pinned to. */
  readonly cpus: number;
  readonly rings: { txSlots?: number; rxSlots?: number; txRings?: number; rxRings?: number };
  readonly dump: boolean;
  /** rx: end after a second without packets. */
  readonly endOnSilence: boolean;
  readonly normalize: boolean;
  /** Bits on the wire of each packet besides its bytes. */
  readonly framingBits: number;
  readonly verbose: boolean;
  readonly json: boolean;
}

/** Ethernet's preamble, gap and CRC: what -B adds, as pkt-gen does. */
const FRAMING_BITS = 24 * 8;
const BROADCAST = [255, 255, 255, 255, 255, 255];
/** Payload of a ping: sequence number, seconds, nanoseconds. */
export const PING_PAYLOAD = 12;

/** @throws UsageError, PortNameError */
export function parseJob(given: PktGenFlags): Job {
  const flags = { ...given, ...optionBits(given.o ?? []) };
  if (flags.i === undefined) throw new UsageError('-i PORT is missing: the port to use, e.g. -i vale0:x');
  const func = FUNCTIONS.find((f) => f === (flags.f ?? 'rx'));
  if (func === undefined) throw new UsageError(`-f ${flags.f}: must be one of ${FUNCTIONS.join(', ')}`);
  const [largest = '60', smallest, more] = flags.l ?? [];
  if (more !== undefined) throw new UsageError('-l: give it once, or twice for random sizes');
  if (flags[4] && flags[6]) throw new UsageError('-4 and -6 exclude each other');
  const v6 = flags[6] ?? false;
  if (v6 && (func === 'ping' || func === 'pong')) throw new UsageError(`-6: ${func} has IPv4 only`);
  if (flags.I) {
    throw new UsageError(
      '-I: indirect buffers are memory outside the region, which a port never follows; leave it out',
    );
  }
  if (flags.P !== undefined) excludedByFile(flags);
  const payload = { ping: PING_PAYLOAD, txseq: SEQUENCE_PAYLOAD }[func as string] ?? 0;
  const minSize = (v6 ? MIN_FRAME6 : MIN_FRAME) + payload;
  const range = v6 ? ipv6Range : ipv4Range;
  const size = whole('-l', flags.l === undefined && v6 ? String(MIN_FRAME6 + payload) : largest, minSize, MAX_FRAME);
  const rate = whole('-R', flags.R ?? '0', 0, 1e9);
  const frags = whole('-F', flags.F ?? '1', 1, 63);
  if (func === 'txseq' && smallest !== undefined) throw new UsageError('-l twice (random sizes) is for tx');
  if (func === 'txseq' && flags.r) throw new UsageError('-r is for tx: packets of txseq have numbers');
  const count = whole('-n', flags.n ?? '0', 0, Number.MAX_SAFE_INTEGER);
  if (smallest !== undefined && frags > 1) throw new UsageError('-l twice (random sizes) and -F exclude each other');
  return {
    port: portName(flags.i),
    func,
    count,
    size,
    minSize: smallest === undefined ? 0 : whole('-l (second)', smallest, minSize, size - 1),
    burst: burst(flags.b, func, rate),
    src: range('-s', flags.s ?? (v6 ? 'fd00::1' : '10.0.0.1')),
    dst: range('-d', flags.d ?? (v6 ? 'fd00::1:1' : '10.1.0.1')),
    srcMac: flags.S === undefined ? undefined : mac('-S', flags.S),
    dstMac: flags.D === undefined ? BROADCAST : mac('-D', flags.D),
    reportMs: whole('-T', flags.T ?? '1000', 10, 3_600_000),
    waitSeconds: whole('-w', flags.w ?? '0', 0, 3600),
    rate,
    alwaysCopy: flags.alwaysCopy,
    frags,
    fragSize: flags.M === undefined ? 0 : whole('-M', flags.M, 1, MAX_FRAME),
    packetFile: flags.P,
    randomSrc: flags.z ?? false,
    randomDst: flags.Z ?? false,
    rubbish: flags.r ?? false,
    vnetHdrLen: vnetHdrLen(flags.H, func),
    rateStats: flags.A ?? false,
    // Each has a share of the count, and 0 has no end.
    threads: Math.min(threads(flags.p, func, flags.H), count || Number.POSITIVE_INFINITY),
    cpu: flags.a === undefined ? -1 : whole('-a', flags.a, 0, 1023),
    cpus: whole('-c', flags.c ?? '0', 0, 1024),
    rings: rings(flags.C),
    dump: flags.X ?? false,
    endOnSilence: flags.W ?? false,
    normalize: !flags.N,
    framingBits: flags.B ? FRAMING_BITS : 0,
    verbose: flags.v ?? false,
    json: flags.json ?? false,
  };
}

/** Bits of -o that have a meaning here; most have a letter too. */
const OPT = {
  copy: 4,
  memcpy: 8,
  dump: 64,
  rubbish: 256,
  randomSrc: 512,
  randomDst: 1024,
  ppsStats: 2048,
  updateCsum: 4096,
};

/** -o: numbers whose bits are put together, as pkt-gen does. Checksums are always right (4096). */
function optionBits(texts: readonly string[]): PktGenFlags & { readonly alwaysCopy: boolean } {
  const bits = texts.reduce((all, text) => all | whole('-o', text, 0, 65535), 0);
  const unknown = bits & ~Object.values(OPT).reduce((all, bit) => all | bit, 0);
  if (unknown !== 0) {
    const known = Object.values(OPT).join(', ');
    throw new UsageError(`-o: ${unknown} has no meaning here, only ${known} have: docs/pkt-gen.md says what they do`);
  }
  return {
    alwaysCopy: (bits & (OPT.copy | OPT.memcpy)) !== 0,
    ...(bits & OPT.dump ? { X: true } : {}),
    ...(bits & OPT.rubbish ? { r: true } : {}),
    ...(bits & OPT.randomSrc ? { z: true } : {}),
    ...(bits & OPT.randomDst ? { Z: true } : {}),
    ...(bits & OPT.ppsStats ? { A: true } : {}),
  };
}

/** What makes no sense for a packet that comes from a file. */
function excludedByFile(flags: PktGenFlags): void {
  if (flags.f !== 'tx') throw new UsageError('-P FILE is for -f tx');
  const letters = ['l', 's', 'd', 'S', 'D', 'z', 'Z', '4', '6', 'r'] as const;
  const given = letters.find((letter) => flags[letter as keyof PktGenFlags] !== undefined);
  if (given !== undefined) throw new UsageError(`-${given} and -P exclude each other: the packet is the file's`);
}

function threads(text: string | undefined, func: PktGenFunction, header: string | undefined): number {
  const n = whole('-p', text ?? '1', 1, 11);
  if (n > 1 && func !== 'tx' && func !== 'rx') throw new UsageError('-p is for tx and rx');
  if (n > 1 && header !== undefined)
    throw new UsageError("-p and -H exclude each other: the header is the whole port's");
  return n;
}

function vnetHdrLen(text: string | undefined, func: PktGenFunction): number {
  const bytes = whole('-H', text ?? '0', 0, 12);
  if (bytes === 0) return 0;
  if (bytes !== 12)
    throw new UsageError(`-H ${text}: must be 0 or 12: a ptnet driver knows the VirtIO header of 12 bytes`);
  if (func === 'ping' || func === 'pong') throw new UsageError('-H is not for ping and pong');
  return bytes;
}

/** With a rate, bursts are shortened so that some are sent every second (as pkt-gen does: a 300th of the rate). */
function burst(text: string | undefined, func: PktGenFunction, rate: number): number {
  const wanted = whole('-b', text ?? (func === 'ping' || func === 'pong' ? '1' : '512'), 1, 65536);
  return rate === 0 ? wanted : Math.max(1, Math.min(wanted, Math.floor(rate / 300)));
}

function mac(option: string, text: string): number[] {
  const bytes = text.split(':').map((b) => (/^[0-9a-f]{1,2}$/i.test(b) ? Number.parseInt(b, 16) : Number.NaN));
  if (bytes.length === 6 && !bytes.some(Number.isNaN)) return bytes;
  throw new UsageError(`${option} ${text}: must be an Ethernet address, e.g. 02:00:00:00:00:01`);
}

/** `tx_slots[,rx_slots[,tx_rings[,rx_rings]]]`; 0 or nothing is the default; one number is for both directions. */
function rings(text: string | undefined): Job['rings'] {
  if (text === undefined) return {};
  const given = text.split(',');
  if (given.length > 4) throw new UsageError(`-C ${text}: at most 4 numbers: tx_slots,rx_slots,tx_rings,rx_rings`);
  const [txSlots = 0, rxSlots = txSlots, txRings = 0, rxRings = txRings] = given.map((n) =>
    n === '' ? 0 : whole('-C', n, 0, 65536),
  );
  return {
    ...(txSlots > 0 ? { txSlots } : {}),
    ...(rxSlots > 0 ? { rxSlots } : {}),
    ...(txRings > 0 ? { txRings } : {}),
    ...(rxRings > 0 ? { rxRings } : {}),
  };
}
