/**
 * Port names, as netmap spells them: one parser for everything that takes one. Grammar of libnetmap (nmreq.c, nmport.c)
 * and netmap(4), vale(4); docs/names.md is its description.
 *
 *   PORT[SELECTION][/FLAGS][@ID][@OPTION…]
 *
 * Entry points: parsePortName, parseRingConfig. Errors point at the character.
 */
import {
  NETMAP_REQ_IFNAMSIZ,
  NETMAP_RING_MASK,
  NR_EXCLUSIVE,
  NR_MONITOR_RX,
  NR_MONITOR_TX,
  NR_REG_ALL_NIC,
  NR_REG_NIC_SW,
  NR_REG_ONE_NIC,
  NR_REG_ONE_SW,
  NR_REG_SW,
  NR_RX_RINGS_ONLY,
  NR_TX_RINGS_ONLY,
  NR_ZCOPY_MON,
} from '../abi/index.ts';

/** Ring counts and sizes as written (0 or absent: the default): pkt-gen's -C and libnetmap's @conf. */
export interface RingConfig {
  readonly txSlots?: number;
  readonly rxSlots?: number;
  readonly txRings?: number;
  readonly rxRings?: number;
}

/** What a name says beyond which port it is: netmap's struct nmreq_register. */
export interface Selection {
  /** nr_mode: NR_REG_ALL_NIC, NR_REG_ONE_NIC, … */
  readonly mode: number;
  /** nr_ringid: the ring of NR_REG_ONE_NIC and NR_REG_ONE_SW. */
  readonly ringId: number;
  /** nr_flags: NR_EXCLUSIVE, … */
  readonly flags: number;
  /** Name of the memory region ("@5", "@lab"): ports of one region exchange buffers without a copy. */
  readonly memId?: string;
  /** Another port, whose region is to be used ("@share=vale0:a"). */
  readonly share?: string;
  readonly conf: RingConfig;
}

interface Named extends Selection {
  /** As written. */
  readonly text: string;
  /** The port alone, by which it is known: "vale0:a", "netmap:eth0", "netmap:x{1", "null:n". */
  readonly name: string;
}

/** A port of a VALE switch: `valeSSS:PPP`. */
export interface ValeName extends Named {
  readonly kind: 'vale';
  /** "valeSSS" */
  readonly bridge: string;
  /** "PPP" */
  readonly port: string;
}

/** An interface: `netmap:IF`: a NIC, or a persistent VALE port (vale-ctl -n). */
export interface InterfaceName extends Named {
  readonly kind: 'netmap';
  /** "IF" */
  readonly port: string;
}

/** One end of a pipe: `BASE{ID` (master) or `BASE}ID` (slave), where BASE is a port of another kind. */
export interface PipeName extends Named {
  readonly kind: 'pipe';
  /** Name of the pipe, the same for both ends: "netmap:x{1". */
  readonly pipe: string;
  /** The port before the brace: "netmap:x", "vale0:a". It need not exist. */
  readonly base: string;
  readonly id: string;
  readonly end: 'master' | 'slave';
}

/** A sink and source: `null:NAME`. */
export interface NullName extends Named {
  readonly kind: 'null';
  readonly port: string;
}

export type PortName = ValeName | InterfaceName | PipeName | NullName;

/** A name that is none; the message shows where. */
export class PortNameError extends Error {
  /** Index of the character. */
  readonly at: number;
  /** What is wrong there. */
  readonly reason: string;
  constructor(text: string, at: number, reason: string, what = 'port name') {
    super(`${what} "${text}": ${reason}\n  ${text}\n  ${' '.repeat(at)}^`);
    this.name = 'PortNameError';
    this.at = at;
    this.reason = reason;
  }
}

const FLAGS: Readonly<Record<string, number>> = {
  x: NR_EXCLUSIVE,
  z: NR_ZCOPY_MON,
  t: NR_MONITOR_TX,
  r: NR_MONITOR_RX,
  R: NR_RX_RINGS_ONLY,
  T: NR_TX_RINGS_ONLY,
};

const CONF_KEYS = ['rings', 'slots', 'tx_rings', 'rx_rings', 'tx_slots', 'rx_slots'] as const;
const MAX_MEM_ID = 65535;

/** A place in a text, moving to the right. */
class Scanner {
  readonly text: string;
  readonly what: string;
  at = 0;

  constructor(text: string, what: string) {
    this.text = text;
    this.what = what;
  }

  fail(why: string, at = this.at): never {
    throw new PortNameError(this.text, at, why, this.what);
  }

  get char(): string {
    return this.text[this.at] ?? '';
  }

  get ended(): boolean {
    return this.at === this.text.length;
  }

  take(char: string): boolean {
    if (this.char !== char) return false;
    this.at++;
    return true;
  }

  /** The longest run of characters of a class, possibly empty. */
  run(of: RegExp): string {
    const start = this.at;
    while (!this.ended && of.test(this.char)) this.at++;
    return this.text.slice(start, this.at);
  }

  number(what: string, min: number, max: number): number {
    const start = this.at;
    const digits = this.run(/[0-9]/);
    if (digits === '') this.fail(`${what} is missing: a number from ${min} to ${max}`);
    const value = Number(digits);
    if (value < min || value > max) this.fail(`${what} is a number from ${min} to ${max}`, start);
    return value;
  }
}

/**
 * Parses a port name with everything that may follow it.
 * @throws PortNameError that points at the character
 */
export function parsePortName(text: string): PortName {
  const s = new Scanner(text, 'port name');
  const { port, end } = parsePort(s);
  if (end >= NETMAP_REQ_IFNAMSIZ) s.fail(`longer than ${NETMAP_REQ_IFNAMSIZ - 1} characters`, NETMAP_REQ_IFNAMSIZ - 1);
  return { ...port, text, name: text.slice(0, end), ...parseSelection(s) } as PortName;
}

type Port =
  | Pick<ValeName, 'kind' | 'bridge' | 'port'>
  | Pick<InterfaceName, 'kind' | 'port'>
  | Pick<PipeName, 'kind' | 'pipe' | 'base' | 'id' | 'end'>
  | Pick<NullName, 'kind' | 'port'>;

function parsePort(s: Scanner): { port: Port; end: number } {
  const prefix = ['netmap', 'vale', 'null'].find((p) => s.text.startsWith(p));
  if (prefix === undefined) {
    s.fail(
      'begins with none of valeSSS: (a port of the VALE switch valeSSS), netmap: (an interface or pipe), null: (a sink)',
    );
  }
  s.at = prefix.length;
  const id = s.run(/[A-Za-z0-9_]/);
  if (prefix !== 'vale' && id !== '') s.fail(`":" has to follow "${prefix}"`, prefix.length);
  if (!s.take(':')) {
    if (s.ended) s.fail('a ":" and the name of a port are missing');
    s.fail(prefix === 'vale' ? 'a switch name has letters, digits and _ only' : `":" has to follow "${prefix}"`);
  }
  const bridge = `vale${id}`;
  const name = s.run(/[A-Za-z0-9_.]/);
  const base = s.text.slice(0, s.at);
  if (name === '') s.fail('the name of the port is missing');
  if (s.char === '{' || s.char === '}') {
    if (prefix === 'null') s.fail('null ports have no pipes');
    const end = s.take('{') ? 'master' : 'slave';
    if (end === 'slave') s.at++;
    const pipeId = s.run(/[A-Za-z0-9_]/);
    if (pipeId === '') s.fail('the name of the pipe is missing: letters, digits and _');
    expectSuffix(s, "a pipe's name has letters, digits and _ only");
    return { port: { kind: 'pipe', pipe: `${base}{${pipeId}`, base, id: pipeId, end }, end: s.at };
  }
  expectSuffix(s, 'a port name has letters, digits, _ and . only');
  if (prefix === 'vale') return { port: { kind: 'vale', bridge, port: name }, end: s.at };
  return { port: { kind: prefix === 'null' ? 'null' : 'netmap', port: name }, end: s.at };
}

function expectSuffix(s: Scanner, why: string): void {
  if (!s.ended && !'-*^/@'.includes(s.char)) s.fail(why);
}

/** Which rings, flags, memory and options follow the port. */
function parseSelection(s: Scanner): Selection {
  let mode = NR_REG_ALL_NIC;
  let ringId = 0;
  let flags = 0;
  let memId: string | undefined;
  let share: string | undefined;
  let conf: RingConfig = {};
  if (s.take('^')) {
    mode = NR_REG_SW;
    if (/[0-9]/.test(s.char)) {
      mode = NR_REG_ONE_SW;
      ringId = s.number('the host ring', 0, NETMAP_RING_MASK - 1);
    }
  } else if (s.take('*')) {
    mode = NR_REG_NIC_SW;
  } else if (s.take('-')) {
    mode = NR_REG_ONE_NIC;
    ringId = s.number('the ring', 0, NETMAP_RING_MASK - 1);
  }
  while (!s.ended) {
    const start = s.at;
    if (s.take('/')) {
      do {
        const flag = FLAGS[s.char];
        if (flag === undefined) s.fail('a flag is expected: x exclusive, R rx only, T tx only, r t z monitors');
        flags |= flag;
        s.at++;
      } while (!s.ended && s.char !== '@' && s.char !== '/');
    } else if (s.take('@')) {
      const word = s.run(/[A-Za-z0-9_-]/);
      if (word === '') s.fail('a region or an option is missing: @ID, @conf:…, @share=PORT');
      if (s.char !== ':' && s.char !== '=') {
        if (!s.ended && s.char !== '@' && s.char !== '/') s.fail("a region's name has letters, digits, _ and - only");
        if (/^[0-9]+$/.test(word) && !(Number(word) >= 1 && Number(word) <= MAX_MEM_ID)) {
          s.fail(`a region's number is from 1 to ${MAX_MEM_ID}`, start + 1);
        }
        if (memId !== undefined && memId !== word) s.fail(`the region is @${memId} already`, start);
        memId = word;
      } else if (word === 'conf') conf = parseConf(s);
      else if (word === 'share') share = parseShare(s);
      else if (word === 'offset')
        s.fail(`@${word} is not possible: ptnet devices have no way to agree on offsets`, start);
      else if (word === 'extmem') s.fail(`@${word} is not possible: regions are the daemon's memory; use @ID`, start);
      else s.fail(`unknown option "${word}": there are conf and share`, start + 1);
    } else s.fail('"/" and flags, or "@" and a region or option are expected here');
  }
  if (memId !== undefined && share !== undefined) s.fail('@share and @ID both name a region', 0);
  return {
    mode,
    ringId,
    flags,
    conf,
    ...(memId === undefined ? {} : { memId }),
    ...(share === undefined ? {} : { share }),
  };
}

/** `@conf:rings=2,slots=512,tx-rings=…` */
function parseConf(s: Scanner): RingConfig {
  const found: Partial<Record<(typeof CONF_KEYS)[number], number>> = {};
  if (!s.take(':')) s.fail('":" and KEY=NUMBER are expected after @conf');
  do {
    const start = s.at;
    const key = s.run(/[a-z_-]/).replaceAll('-', '_');
    const known = CONF_KEYS.find((k) => k === key);
    if (key.startsWith('host')) s.fail('these ports have no host rings', start);
    if (known === undefined) s.fail(`a key is expected: ${CONF_KEYS.join(', ')}`, start);
    if (found[known] !== undefined) s.fail(`"${key}" stands twice`, start);
    if (!s.take('=')) s.fail('"=" and a number are expected');
    found[known] = s.number(key, 0, 65535);
  } while (s.take(','));
  const { rings, slots, tx_rings, rx_rings, tx_slots, rx_slots } = found;
  return withoutZeros({
    txSlots: tx_slots ?? slots,
    rxSlots: rx_slots ?? slots,
    txRings: tx_rings ?? rings,
    rxRings: rx_rings ?? rings,
  });
}

/** `@share=PORT` or `@share:port=PORT` */
function parseShare(s: Scanner): string {
  if (s.take(':')) {
    if (s.run(/[a-z]/) !== 'port') s.fail('"port=" is expected after "@share:"');
    if (!s.take('=')) s.fail('"=" and a port name are expected');
  } else s.at++;
  const start = s.at;
  const rest = s.run(/[^@]/);
  try {
    return parsePortName(rest).name;
  } catch (e) {
    if (e instanceof PortNameError) s.fail(`@share wants a port name: ${e.reason}`, start + e.at);
    throw e;
  }
}

type Loose = { readonly [K in keyof RingConfig]: RingConfig[K] | undefined };

function withoutZeros(conf: Loose): RingConfig {
  return Object.fromEntries(Object.entries(conf).filter(([, value]) => value !== undefined && value > 0));
}

/**
 * Parses a ring configuration as pkt-gen and vale-ctl take it with -C: `tx slots[,rx slots[,tx rings[,rx rings]]]`, where
 * the second and the fourth number are as the one before unless they are given, and 0 is the default.
 * @throws PortNameError that points at the character
 */
export function parseRingConfig(text: string): RingConfig {
  const s = new Scanner(text, 'ring configuration');
  const names = [
    'the number of tx slots',
    'the number of rx slots',
    'the number of tx rings',
    'the number of rx rings',
  ];
  const numbers: number[] = [];
  do numbers.push(s.number(names[numbers.length]!, 0, 65535));
  while (numbers.length < names.length && s.take(','));
  if (!s.ended) s.fail(numbers.length === names.length ? 'four numbers at most' : 'a "," and a number, or nothing');
  const [txSlots, rxSlots = txSlots, txRings, rxRings = txRings] = numbers;
  return withoutZeros({ txSlots, rxSlots, txRings, rxRings });
}
