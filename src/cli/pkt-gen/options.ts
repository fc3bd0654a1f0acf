/**
 * pkt-gen's options, by netmap's letters, from text to numbers. Entry point: parseJob. A wrong value is a UsageError that
 * names the option and what is allowed.
 */
import { UsageError } from '../errors.ts';
import { type IpRange, MAX_FRAME, MIN_FRAME, PAYLOAD_OFS } from './frame.ts';

export const FUNCTIONS = ['tx', 'rx', 'ping', 'pong'] as const;
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
  /** Slots of a packet. */
  readonly frags: number;
  /** Bytes of a fragment, if smaller than `size / frags`; 0: the buffer's size. */
  readonly fragSize: number;
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

export function parseJob(flags: PktGenFlags): Job {
  if (flags.i === undefined) throw new UsageError('-i PORT is missing: the port to use, e.g. -i vale0:x');
  const func = FUNCTIONS.find((f) => f === (flags.f ?? 'rx'));
  if (func === undefined) throw new UsageError(`-f ${flags.f}: must be one of ${FUNCTIONS.join(', ')}`);
  const [largest = '60', smallest, more] = flags.l ?? [];
  if (more !== undefined) throw new UsageError('-l: give it once, or twice for random sizes');
  const minSize = func === 'ping' ? PAYLOAD_OFS + PING_PAYLOAD : MIN_FRAME;
  const size = whole('-l', largest, minSize, MAX_FRAME);
  const rate = whole('-R', flags.R ?? '0', 0, 1e9);
  const frags = whole('-F', flags.F ?? '1', 1, 63);
  if (smallest !== undefined && frags > 1) throw new UsageError('-l twice (random sizes) and -F exclude each other');
  return {
    port: flags.i,
    func,
    count: whole('-n', flags.n ?? '0', 0, Number.MAX_SAFE_INTEGER),
    size,
    minSize: smallest === undefined ? 0 : whole('-l (second)', smallest, minSize, size - 1),
    burst: burst(flags.b, func, rate),
    src: ipRange('-s', flags.s ?? '10.0.0.1'),
    dst: ipRange('-d', flags.d ?? '10.1.0.1'),
    srcMac: flags.S === undefined ? undefined : mac('-S', flags.S),
    dstMac: flags.D === undefined ? BROADCAST : mac('-D', flags.D),
    reportMs: whole('-T', flags.T ?? '1000', 10, 3_600_000),
    waitSeconds: whole('-w', flags.w ?? '0', 0, 3600),
    rate,
    frags,
    fragSize: flags.M === undefined ? 0 : whole('-M', flags.M, 1, MAX_FRAME),
    rings: rings(flags.C),
    dump: flags.X ?? false,
    endOnSilence: flags.W ?? false,
    normalize: !flags.N,
    framingBits: flags.B ? FRAMING_BITS : 0,
    verbose: flags.v ?? false,
    json: flags.json ?? false,
  };
}

function whole(option: string, text: string, min: number, max: number): number {
  const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (value >= min && value <= max) return value;
  throw new UsageError(`${option} ${text}: must be a whole number from ${min} to ${max}`);
}

/** With a rate, bursts are shortened so that some are sent every second (as pkt-gen does: a 300th of the rate). */
function burst(text: string | undefined, func: PktGenFunction, rate: number): number {
  const wanted = whole('-b', text ?? (func === 'tx' || func === 'rx' ? '512' : '1'), 1, 65536);
  return rate === 0 ? wanted : Math.max(1, Math.min(wanted, Math.floor(rate / 300)));
}

function mac(option: string, text: string): number[] {
  const bytes = text.split(':').map((b) => (/^[0-9a-f]{1,2}$/i.test(b) ? Number.parseInt(b, 16) : Number.NaN));
  if (bytes.length === 6 && !bytes.some(Number.isNaN)) return bytes;
  throw new UsageError(`${option} ${text}: must be an Ethernet address, e.g. 02:00:00:00:00:01`);
}

/** `ip[:port[-ip:port]]`; the ends may be given in any order. */
function ipRange(option: string, text: string): IpRange {
  const ends = text.split('-').map((end) => {
    const [address = '', port = '1234', more] = end.split(':');
    const bytes = address.split('.').map((b) => (/^\d{1,3}$/.test(b) && Number(b) < 256 ? Number(b) : Number.NaN));
    const portOk = /^\d+$/.test(port) && Number(port) < 65536;
    if (bytes.length !== 4 || bytes.some(Number.isNaN) || !portOk || more !== undefined) {
      throw new UsageError(`${option} ${text}: must be IP[:PORT[-IP:PORT]], e.g. 10.0.0.1:1000-10.0.0.9:2000`);
    }
    return { ip: bytes.reduce((sum, b) => sum * 256 + b, 0), port: end.includes(':') ? Number(port) : undefined };
  });
  const [a, b = a, more] = ends;
  if (a === undefined || b === undefined || more !== undefined) {
    throw new UsageError(`${option} ${text}: must be one address or two with "-" between them`);
  }
  const portA = a.port ?? 1234;
  const portB = b.port ?? portA;
  return {
    ip0: Math.min(a.ip, b.ip),
    ip1: Math.max(a.ip, b.ip),
    port0: Math.min(portA, portB),
    port1: Math.max(portA, portB),
  };
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
