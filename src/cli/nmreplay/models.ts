/**
 * nmreplay's models of a link: bandwidth (-B), delay (-D), loss (-L), from netmap's words for them. Times are nanoseconds.
 * A model is a function that is called once a packet and allocates nothing.
 */
import { UsageError } from '../errors.ts';
import { withUnit } from '../numbers.ts';

/** Time that a packet takes on the link. @param gap nanoseconds since the packet before it in the trace */
export type Bandwidth = (bytes: number, gap: number) => number;
/** Time that is added to a packet's. */
export type Delay = () => number;
/** Whether a packet is lost. */
export type Loss = (bytes: number) => boolean;
/** A random number, 0 included, 1 not. */
export type Random = () => number;

const TIME = { '': 1e9, s: 1e9, m: 1e6, u: 1e3, n: 1 };
const BITS = { '': 1, k: 1e3, K: 1e3, m: 1e6, M: 1e6, g: 1e9, G: 1e9 };
/** Ethernet's preamble, gap and CRC, bytes. */
const FRAMING = 24;

/** A repeatable sequence (mulberry32). */
export function random(seed: number): Random {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), 1 | state);
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** `real[,SPEEDUP]`, `[constant,]BPS`, `ether,BPS`; without -B the times of the trace. */
export function parseBandwidth(text: string | undefined): Bandwidth {
  if (text === undefined) return (_bytes, gap) => gap;
  const [word = '', value, more] = text.split(',');
  const wrong = (): never => {
    throw new UsageError(`-B ${text}: must be BPS, constant,BPS, ether,BPS or real[,SPEEDUP], e.g. 10M, real,2`);
  };
  if (more !== undefined) wrong();
  if (word === 'real') {
    const speedup = value === undefined ? 1 : withUnit(value, { '': 1 });
    if (!(speedup > 0 && speedup <= 1000)) wrong();
    return (_bytes, gap) => gap / speedup;
  }
  const plain = value === undefined;
  const bps = withUnit(plain ? word : value, BITS);
  if (Number.isNaN(bps) || !(plain || isConstant(word) || word === 'ether')) wrong();
  if (bps === 0) return () => 0;
  const extra = word === 'ether' ? FRAMING : 0;
  return (bytes) => (8e9 * (bytes + extra)) / bps;
}

/** `[constant,]T`, `uniform,MIN,MAX`, `exp,AVG,MIN`. */
export function parseDelay(text: string | undefined, rnd: Random): Delay {
  if (text === undefined) return () => 0;
  const words = text.split(',');
  const [word = ''] = words;
  const times = words.slice(words.length === 1 ? 0 : 1).map((t) => withUnit(t, TIME));
  const [first = Number.NaN, second = Number.NaN] = times;
  const ok = !times.some(Number.isNaN);
  if (ok && (words.length === 1 || (words.length === 2 && isConstant(word)))) return () => first;
  if (ok && words.length === 3 && word === 'uniform' && first <= second) {
    return () => first + (second - first) * rnd();
  }
  if (ok && words.length === 3 && word === 'exp' && first >= second) {
    return () => second - (first - second) * Math.log(1 - rnd());
  }
  throw new UsageError(
    `-D ${text}: must be T, constant,T, uniform,MIN,MAX or exp,AVERAGE,MIN, e.g. 20m, uniform,1m,500u`,
  );
}

/** `[plr,]P`, `ber,P`. */
export function parseLoss(text: string | undefined, rnd: Random): Loss {
  if (text === undefined) return () => false;
  const words = text.split(',');
  const p = withUnit(words.at(-1)!, { '': 1 });
  const word = words.length === 1 ? 'plr' : words[0];
  if (words.length > 2 || !(p >= 0 && p <= 1) || (word !== 'plr' && word !== 'ber')) {
    throw new UsageError(`-L ${text}: must be P, plr,P or ber,P with P from 0 to 1, e.g. 0.01, ber,1e-6`);
  }
  if (word === 'plr') return () => rnd() < p;
  return (bytes) => rnd() >= (1 - p) ** (8 * bytes);
}

const isConstant = (word: string): boolean => word.startsWith('const');
