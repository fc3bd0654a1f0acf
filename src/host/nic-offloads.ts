/**
 * Offloads of interfaces that are switched off while a port needs their frames whole. Unlike all else that a port changes,
 * they are not held by a descriptor and outlive a daemon that is killed. So what is switched off is recorded first, in a file of
 * the run directory, and the next daemon there switches it on again: if the interface is still the same one, and it is still
 * off. docs/nics.md
 *
 * Control thread. Entry points: NicOffloads, parseOffloads.
 */
import {
  closeSync,
  constants,
  fstatSync,
  openSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import type { FrameOffload } from '../os/index.ts';
import {
  errno,
  FRAME_OFFLOADS,
  frameOffload,
  IFNAME_MAX,
  interfaceEther,
  interfaceIndex,
  setFrameOffload,
  SysError,
} from '../os/index.ts';

/** What was switched off at an interface. The first four say which one that is; its name is for ioctls and people. */
export interface SwitchedOff {
  /** The kernel's boot_id. */
  readonly boot: string;
  /** Network namespace: "net:[4026531840]". */
  readonly netns: string;
  readonly ifindex: number;
  /** "02:00:00:00:00:01" */
  readonly mac: string;
  readonly name: string;
  readonly off: readonly FrameOffload[];
}

/** Most entries of a record. Those of namespaces that are no more would pile up. */
const MAX_ENTRIES = 256;
/** An entry has at most some 250 bytes. */
const MAX_BYTES = 2 ** 17;

const FIELDS: { readonly [K in keyof SwitchedOff]: (value: unknown) => boolean } = {
  boot: (value) => typeof value === 'string' && /^[0-9a-f-]{1,64}$/.test(value),
  netns: (value) => typeof value === 'string' && /^net:\[\d{1,20}\]$/.test(value),
  ifindex: (value) => Number.isInteger(value) && Number(value) > 0 && Number(value) < 2 ** 31,
  mac: (value) => typeof value === 'string' && /^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/.test(value),
  name: (value) =>
    typeof value === 'string' && /^[^/\s:\0]+$/.test(value) && new TextEncoder().encode(value).length <= IFNAME_MAX,
  off: (value) =>
    Array.isArray(value) && new Set(value).size === value.length && value.every((o) => FRAME_OFFLOADS.includes(o)),
};

/** Why a record is none: told in the warning that it is ignored. */
function refuse(why: string): never {
  throw new Error(why);
}

/** The text of a record. @throws Error that says what is wrong with it, if it is none */
export function parseOffloads(text: string): SwitchedOff[] {
  const entries: unknown = JSON.parse(text);
  if (!Array.isArray(entries) || entries.length > MAX_ENTRIES) refuse(`no list of at most ${MAX_ENTRIES}`);
  for (const [i, entry] of entries.entries()) {
    if (typeof entry !== 'object' || entry === null) refuse(`entry ${i} is no object`);
    for (const [field, valid] of Object.entries(FIELDS)) {
      if (!valid((entry as Record<string, unknown>)[field])) refuse(`"${field}" of entry ${i}`);
    }
  }
  return entries as SwitchedOff[];
}

export class NicOffloads {
  readonly #file: string;
  readonly #log: (level: 'info' | 'warn', message: string) => void;
  /** Those that are recorded: ours, and what is another namespace's affair. */
  readonly #entries = new Set<SwitchedOff>();

  /** @param file the record, in a directory that only one live daemon has */
  constructor(file: string, log: (level: 'info' | 'warn', message: string) => void) {
    this.#file = file;
    this.#log = log;
  }

  /** Switches on again what a daemon that was killed had switched off here. For a daemon's start. */
  recover(): void {
    let recorded: SwitchedOff[];
    let now: Pick<SwitchedOff, 'boot' | 'netns'>;
    try {
      const text = read(this.#file);
      if (text === undefined) return;
      recorded = parseOffloads(text);
      now = here();
    } catch (e) {
      this.#log('warn', `${this.#file} is ignored, as it is no record of offloads: ${why(e)}`);
      return;
    }
    for (const entry of recorded) {
      if (entry.boot !== now.boot) continue; // the interface has begun anew
      if (entry.netns !== now.netns) this.#entries.add(entry);
      else if (isSame(entry) && macOf(entry.name) === entry.mac) this.#recoverOne(entry);
      else
        this.#log('info', `interface ${entry.name}, whose ${list(entry.off)} had been on, is gone or another one now`);
    }
    this.#save();
  }

  #recoverOne(entry: SwitchedOff): void {
    const on = this.#switchOn(entry);
    if (on.length === 0) return;
    this.#log('info', `interface ${entry.name}: ${list(on)} switched on again: the daemon before was killed`);
  }

  /**
   * Switches off those of some offloads that are on, and records that before. Returns a function that switches them on
   * again, once, if the interface is still there.
   * @throws SysError EINVAL: the driver refuses (GRO: is left on)
   */
  switchOff(name: string, ifindex: number, offloads: readonly FrameOffload[]): () => void {
    const off = offloads.filter((offload) => frameOffload(name, offload));
    if (off.length === 0) return () => {};
    let entry: SwitchedOff | undefined;
    try {
      entry = { ...here(), ifindex, mac: macOf(name), name, off };
      this.#entries.add(entry);
      this.#write();
    } catch (e) {
      const lasts = `${list(off)} would stay off if this daemon were killed`;
      this.#log('warn', `interface ${name}: ${lasts}, as that could not be recorded: ${why(e)}`);
    }
    const changed = entry ?? { name, ifindex, off };
    const restore = (): void => {
      this.#switchOn(changed);
      if (entry === undefined) return;
      this.#entries.delete(entry);
      this.#save();
    };
    for (const offload of off) {
      if (setFrameOffload(name, offload, false) || offload === 'gro') continue;
      restore();
      throw new SysError(
        `interface ${name}: its driver does not switch ${offload} off, which would change frames`,
        errno.EINVAL,
      );
    }
    return restore;
  }

  /** Returns what was off and is on now. */
  #switchOn(entry: Pick<SwitchedOff, 'name' | 'ifindex' | 'off'>): FrameOffload[] {
    const { name } = entry;
    if (!isSame(entry)) return [];
    const off = entry.off.filter((offload) => !frameOffload(name, offload));
    const on = off.filter((offload) => setFrameOffload(name, offload, true));
    const left = off.filter((offload) => !on.includes(offload));
    if (left.length > 0) this.#log('warn', `interface ${name}: its driver does not switch ${list(left)} on again`);
    return on;
  }

  #save(): void {
    try {
      this.#write();
    } catch (e) {
      this.#log('warn', `the record of offloads could not be written: ${why(e)}`);
    }
  }

  /** Writes the record as a whole or not at all; none if there is nothing to record. */
  #write(): void {
    if (this.#entries.size === 0) {
      rmSync(this.#file, { force: true });
      return;
    }
    const next = `${this.#file}.new`;
    rmSync(next, { force: true });
    const entries = [...this.#entries].slice(-MAX_ENTRIES);
    writeFileSync(next, `${JSON.stringify(entries)}\n`, { flag: 'wx', mode: 0o600 });
    renameSync(next, this.#file);
  }
}

/** The text of a file of ours, whatever is there in its place; undefined: there is none. @throws Error */
function read(file: string): string | undefined {
  let fd: number;
  try {
    fd = openSync(file, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (e) {
    if ((e as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw e;
  }
  try {
    const stat = fstatSync(fd);
    if (!stat.isFile() || stat.size > MAX_BYTES) refuse(`no file of at most ${MAX_BYTES} bytes`);
    return readFileSync(fd, 'utf8');
  } finally {
    closeSync(fd);
  }
}

/** Which machine's network this process is in. */
function here(): Pick<SwitchedOff, 'boot' | 'netns'> {
  const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  return { boot, netns: readlinkSync('/proc/self/ns/net') };
}

function isSame({ name, ifindex }: Pick<SwitchedOff, 'name' | 'ifindex'>): boolean {
  try {
    return interfaceIndex(name) === ifindex;
  } catch (e) {
    if (e instanceof SysError) return false;
    throw e;
  }
}

const macOf = (name: string): string =>
  Buffer.from(interfaceEther(name))
    .toString('hex')
    .replace(/..(?!$)/g, '$&:');
const list = (offloads: readonly FrameOffload[]): string => offloads.join(', ');
const why = (e: unknown): string => (e instanceof Error ? e.message : String(e));
