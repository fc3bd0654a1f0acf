/**
 * The daemon's configuration: the schema of ptnet.yaml, its defaults, the flags of `ptnet host` over it, and who may open
 * what (R21). docs/configuration.md describes every key, and its example is parsed by a test.
 *
 * Entry points: loadConfig, defaultConfig, mergeFlags, accessOf, mayOpen, mayMonitor.
 */
import { readFileSync } from 'node:fs';
import { LineCounter, parseDocument } from 'yaml';
import { z } from 'zod';
import { NM_BDG_MAXPORTS, NM_BDG_MAXRINGS, NM_BRIDGE_MAXSLOTS, NM_BRIDGE_RINGSIZE } from '../abi/index.ts';
import { defaultRunDir } from '../os/index.ts';
import { parsePortName, PortNameError } from '../ports/index.ts';
import { isMonitor } from './monitors.ts';
import { ConfigError, explainIssues, explainSyntax, type Source } from './config-errors.ts';

export { ConfigError } from './config-errors.ts';

export const LOG_LEVELS = ['silent', 'fatal', 'error', 'warn', 'info', 'debug', 'trace'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** Shape of ports for which nothing else is said: rings of each direction, slots of a ring, bytes of a buffer. */
export interface PortDefaults {
  readonly txRings: number;
  readonly rxRings: number;
  readonly txSlots: number;
  readonly rxSlots: number;
  readonly bufSize: number;
  /** Grant the VirtIO network header to clients that ask for it (docs/interface.md). */
  readonly vnetHdr: boolean;
  /** Put what is made for them on huge pages, if there are enough (docs/memory.md). */
  readonly hugePages: boolean;
}

export interface VmConfig {
  /** Port names, in the order of the VM's devices. */
  readonly ports: readonly string[];
  /** Accept guest memory that is not sealed against shrinking (R1): whoever owns it can crash the daemon. */
  readonly trustUnsealedMemory: boolean;
  /** Whether the memdev's BAR1 is a 64-bit BAR; default true. */
  readonly bar64?: boolean | undefined;
  /** In place of `ports.vnetHdr`. */
  readonly vnetHdr?: boolean | undefined;
  /** In place of `ports.hugePages`, for the VM's own region. */
  readonly hugePages?: boolean | undefined;
}

/** Sizes of a region: netmap_if objects, rings, slots of the longest ring, buffers, bytes of a buffer; what it lies on. */
export interface RegionDefaults {
  readonly interfaces?: number;
  readonly rings?: number;
  readonly slots?: number;
  readonly buffers?: number;
  readonly bufSize?: number;
  readonly hugePages?: boolean;
}

/** What may be done with the host's interfaces (docs/nics.md). */
export interface InterfaceAccess {
  /** Interfaces that ports may take though the host's default route goes through them. */
  readonly mayCutOff: readonly string[];
}

/** What one user may do. */
export interface UserAccess {
  /** Globs of port names: `*` is any run of characters, `?` any one. */
  readonly ports: readonly string[];
  /** Most ports open at once. */
  readonly maxPorts: number;
  /** Most bytes of regions. */
  readonly maxMemory: number;
}

export interface DaemonConfig {
  readonly runDir: string;
  /** Datapath threads. */
  readonly threads: number;
  /** The CPU that each of them is pinned to; default: none, they go where the kernel puts them. */
  readonly cpus?: readonly number[];
  readonly logLevel: LogLevel;
  /** Bytes of each datapath thread's arena; default 4 GiB (address space, not memory). */
  readonly arenaBytes?: number;
  readonly ports: PortDefaults;
  readonly vms: Readonly<Record<string, VmConfig>>;
  /** Sizes of the regions of @IDs; what is left out is computed (docs/memory.md). */
  readonly regions: Readonly<Record<string, RegionDefaults>>;
  readonly interfaces: InterfaceAccess;
  /** By uid. Users not listed may open nothing, but see `accessOf`. */
  readonly users: ReadonlyMap<number, UserAccess>;
}

/** Flags of `ptnet host`, as given. */
export interface HostFlags {
  /** Each "NAME=PORT[,PORT…]". */
  readonly vm?: readonly string[];
  readonly threads?: string;
  /** "0,2" */
  readonly cpus?: string;
  readonly runDir?: string;
  readonly logLevel?: string;
}

const MAX_THREADS = 16;
/** Linux' cpu_set_t has 1024. */
const MAX_CPU = 1023;
const GiB = 2 ** 30;
const REGION_ID = /^[A-Za-z0-9_-]+$/;
const IFACE = /^[^\s/:]{1,15}$/;
const VM_NAME = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$/;

const what = {
  port: 'a port name (docs/names.md), e.g. vale0:fw or netmap:x{1@lab',
  region: 'the ID of a region, without "@": letters, digits, "_" and "-", e.g. lab',
  vm: 'a VM name: letters, digits, "_", "." and "-", at most 32, e.g. fw',
  iface: 'the name of an interface of the host, at most 15 characters, e.g. eth1',
  cpus: `a list of different CPUs, one for each datapath thread, at most ${MAX_THREADS}, e.g. [0, 2]`,
  size: 'a size: bytes, or a number with K, M or G (powers of 1024), e.g. 64M',
};

const whole = (min: number, max: number): z.ZodType<number> => {
  const error = `a whole number from ${min} to ${max}`;
  return z.int({ error }).min(min, { error }).max(max, { error });
};

/** A mapping with these keys and no others. */
const mapping = <T extends z.core.$ZodLooseShape>(shape: T): z.ZodObject<T, z.core.$strict> => {
  const keys = Object.keys(shape).join(', ');
  return z.strictObject(shape, {
    error: (issue) => (issue.code === 'unrecognized_keys' ? `allowed: ${keys}` : `a mapping with keys of: ${keys}`),
  });
};

/** Bytes of a size as written, or NaN. */
function sizeBytes(text: string | number): number {
  const [, digits, unit] = /^(\d+)\s*([KMG]?)(?:i?B)?$/i.exec(String(text)) ?? [];
  if (digits === undefined) return Number.NaN;
  return Number(digits) * { '': 1, K: 2 ** 10, M: 2 ** 20, G: GiB }[(unit ?? '').toUpperCase() as '' | 'K' | 'M' | 'G'];
}

const size = (min: number, max: number): z.ZodType<number> =>
  z
    .union([z.string(), z.number()], { error: what.size })
    .transform(sizeBytes)
    .refine((n) => n >= min && n <= max, { error: `must be ${what.size}, from ${min} to ${max} bytes` });

const portName = z.string({ error: what.port }).superRefine((name, ctx) => {
  try {
    parsePortName(name);
  } catch (e) {
    if (!(e instanceof PortNameError)) throw e;
    ctx.addIssue({
      code: 'custom',
      message: `is "${name}", must be ${what.port}: ${e.reason} (at character ${e.at + 1})`,
    });
  }
});

const flag = z.boolean({ error: 'true or false' });
/**
 * netmap's 2048 and a cache line: multiples of 2048 share few sets of a cache, in which frames' headers then have no room
 * (docs/datapath.md).
 */
export const BUF_SIZE = 2112;
const bufSizeText = 'a multiple of 64 from 64 to 65472';
const portDefaults = mapping({
  txRings: whole(1, NM_BDG_MAXRINGS).default(1),
  rxRings: whole(1, NM_BDG_MAXRINGS).default(1),
  txSlots: whole(2, NM_BRIDGE_MAXSLOTS).default(NM_BRIDGE_RINGSIZE),
  rxSlots: whole(2, NM_BRIDGE_MAXSLOTS).default(NM_BRIDGE_RINGSIZE),
  bufSize: z
    .int({ error: bufSizeText })
    .min(64, { error: bufSizeText })
    .max(65472, { error: bufSizeText })
    .multipleOf(64, { error: bufSizeText })
    .default(BUF_SIZE),
  vnetHdr: flag.default(true),
  hugePages: flag.default(false),
});

const region = mapping({
  interfaces: whole(1, 65535).optional(),
  rings: whole(2, 65535).optional(),
  slots: whole(2, NM_BRIDGE_MAXSLOTS).optional(),
  buffers: whole(2, 2 ** 24).optional(),
  bufSize: z
    .int({ error: bufSizeText })
    .min(64, { error: bufSizeText })
    .max(65472, { error: bufSizeText })
    .multipleOf(64, { error: bufSizeText })
    .optional(),
  hugePages: flag.optional(),
}).transform(
  // Keys that are absent, not undefined: the sizes are laid over computed ones.
  (sizes): RegionDefaults => Object.fromEntries(Object.entries(sizes).filter(([, given]) => given !== undefined)),
);

const vm = mapping({
  ports: z.array(portName, { error: 'a list of port names, e.g. [vale0:fw]' }).min(1, { error: 'at least one port' }),
  trustUnsealedMemory: flag.default(false),
  bar64: flag.optional(),
  vnetHdr: flag.optional(),
  hugePages: flag.optional(),
});

const interfaces = mapping({
  mayCutOff: z
    .array(z.string({ error: what.iface }).regex(IFACE, { error: what.iface }), {
      error: 'a list of interfaces, e.g. [eth1]',
    })
    .default([]),
});

const user = mapping({
  ports: z.array(z.string({ error: 'a glob of port names, e.g. "vale0:*"' }), {
    error: 'a list of globs of port names, e.g. ["vale0:*"]',
  }),
  maxPorts: whole(1, NM_BDG_MAXPORTS).default(16),
  maxMemory: size(2 ** 20, 4 * GiB).default(256 * 2 ** 20),
});

const cpus = z
  .array(whole(0, MAX_CPU), { error: what.cpus })
  .min(1, { error: what.cpus })
  .max(MAX_THREADS, { error: what.cpus })
  .refine((list) => new Set(list).size === list.length, { error: what.cpus });

/** An empty YAML value is null; it means the same as leaving the key out. */
const orEmpty = <T extends z.ZodType>(schema: T) => z.preprocess((v) => v ?? {}, schema);

const document = mapping({
  runDir: z.string({ error: 'a path' }).startsWith('/', { error: 'an absolute path' }).optional(),
  threads: whole(1, MAX_THREADS).optional(),
  cpus: cpus.optional(),
  logLevel: z.enum(LOG_LEVELS, { error: `one of ${LOG_LEVELS.join(', ')}` }).default('info'),
  arenaBytes: size(16 * 2 ** 20, 4 * GiB).optional(),
  ports: orEmpty(portDefaults),
  vms: orEmpty(
    z.record(z.string().regex(VM_NAME, { error: what.vm }), vm, { error: 'a mapping from VM names to VMs' }),
  ).superRefine((vms, ctx) => {
    for (const [port, first, second, index] of sharedPorts(vms)) {
      const message = `${port} is already a port of ${first}: a port serves one device`;
      ctx.addIssue({ code: 'custom', path: [second, 'ports', index], message });
    }
  }),
  regions: orEmpty(
    z.record(z.string().regex(REGION_ID, { error: what.region }), region, { error: 'a mapping from regions to sizes' }),
  ),
  interfaces: orEmpty(interfaces),
  users: orEmpty(z.record(z.string(), user, { error: 'a mapping from users to what they may open' })).transform(
    (users, ctx) => {
      const byUid = new Map<number, UserAccess>();
      for (const [name, access] of Object.entries(users)) {
        const uid = uidOf(name);
        if (uid === undefined) ctx.addIssue({ code: 'custom', path: [name], message: 'no such user on this system' });
        else if (byUid.has(uid)) ctx.addIssue({ code: 'custom', path: [name], message: `uid ${uid} is listed twice` });
        else byUid.set(uid, access);
      }
      return byUid;
    },
  ),
}).superRefine(({ threads, cpus: pinned }, ctx) => {
  if (threads === undefined || pinned === undefined || threads === pinned.length) return;
  ctx.addIssue({ code: 'custom', path: ['cpus'], message: otherCount(pinned, threads) });
});

const otherCount = (pinned: readonly number[], threads: number): string =>
  `${pinned.length} CPUs for ${threads} datapath threads: must be one for each`;

/** Ports that stand twice, each monitor being one of its own: [port, first VM, second VM, index in the second's list]. */
function* sharedPorts(
  vms: Readonly<Record<string, { readonly ports: readonly string[] }>>,
): Generator<[string, string, string, number]> {
  const owners = new Map<string, string>();
  for (const [name, { ports }] of Object.entries(vms)) {
    for (const [i, port] of ports.entries()) {
      if (portName.safeParse(port).success && isMonitor(parsePortName(port))) continue;
      const owner = owners.get(port);
      if (owner !== undefined) yield [port, owner, name, i];
      owners.set(port, owner ?? name);
    }
  }
}

/** uid of a user given by name or number; only /etc/passwd is asked. */
function uidOf(name: string): number | undefined {
  if (/^\d+$/.test(name)) return Number(name);
  const entry = readFileSync('/etc/passwd', 'utf8')
    .split('\n')
    .find((line) => line.startsWith(`${name}:`));
  return entry === undefined ? undefined : Number(entry.split(':')[2]);
}

/**
 * Checks a configuration's text.
 * @param file its name, for messages
 * @throws ConfigError naming every fault with line, column and path
 */
export function parseConfig(text: string, file: string): DaemonConfig {
  const lines = new LineCounter();
  const doc = parseDocument(text, { lineCounter: lines, uniqueKeys: true });
  const source: Source = { file, doc, lines };
  if (doc.errors.length > 0) throw explainSyntax(source);
  const result = document.safeParse(doc.toJS() ?? {});
  if (!result.success) throw explainIssues(source, result.error.issues);
  const { arenaBytes, runDir, threads, cpus: pinned, ...rest } = result.data;
  return {
    ...rest,
    runDir: runDir ?? defaultRunDir(),
    threads: threads ?? pinned?.length ?? 1,
    ...(pinned === undefined ? {} : { cpus: pinned }),
    ...(arenaBytes === undefined ? {} : { arenaBytes }),
  };
}

/** Reads a configuration file. @throws ConfigError, also if the file cannot be read */
export function loadConfig(path: string): DaemonConfig {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (e) {
    const reason = e instanceof Error ? e.message : String(e);
    throw new ConfigError([`cannot read the configuration: ${reason}`]);
  }
  return parseConfig(text, path);
}

/** What the daemon does without a configuration file. */
export function defaultConfig(): DaemonConfig {
  return parseConfig('', 'defaults');
}

/** Lays flags over a configuration: a VM named by `--vm` gets those ports, whatever the file said. @throws ConfigError */
export function mergeFlags(config: DaemonConfig, flags: HostFlags): DaemonConfig {
  const faults: string[] = [];
  const vms: Record<string, VmConfig> = { ...config.vms };
  const seen = new Set<string>();
  for (const given of flags.vm ?? []) {
    const equals = given.indexOf('=');
    const name = given.slice(0, Math.max(0, equals));
    const list = equals < 0 ? undefined : given.slice(equals + 1);
    // Commas also stand in ring configurations (@conf:slots=64,rings=2).
    const ports = (list ?? '').split(/,(?=$|vale|netmap:|null:)/);
    const bad = ports.find((p) => !portName.safeParse(p).success);
    if (list === undefined) faults.push(`--vm ${given}: must be NAME=PORT[,PORT…]`);
    else if (!VM_NAME.test(name)) faults.push(`--vm ${given}: "${name}" is not ${what.vm}`);
    else if (bad !== undefined) faults.push(`--vm ${given}: "${bad}" is not ${what.port}`);
    else if (seen.has(name)) faults.push(`--vm ${given}: ${name} is given twice; list its ports once, with commas`);
    seen.add(name);
    vms[name] = { trustUnsealedMemory: false, ...vms[name], ports };
  }
  const pinned =
    flags.cpus === undefined ? config.cpus : flags.cpus.split(',').map((c) => (/^\d+$/.test(c) ? Number(c) : -1));
  if (flags.cpus !== undefined && !cpus.safeParse(pinned).success)
    faults.push(`--cpus ${flags.cpus}: must be ${what.cpus.replace('[0, 2]', '0,2')}`);
  const threads =
    flags.threads !== undefined ? Number(flags.threads) : flags.cpus !== undefined ? pinned!.length : config.threads;
  if (!Number.isInteger(threads) || threads < 1 || threads > MAX_THREADS) {
    faults.push(`--threads ${flags.threads}: must be a whole number from 1 to ${MAX_THREADS}`);
  }
  if (faults.length === 0 && pinned !== undefined && pinned.length !== threads) {
    faults.push(`--threads, --cpus: ${otherCount(pinned, threads)}`);
  }
  const logLevel = LOG_LEVELS.find((l) => l === (flags.logLevel ?? config.logLevel));
  if (logLevel === undefined) faults.push(`--log-level ${flags.logLevel}: must be one of ${LOG_LEVELS.join(', ')}`);
  if (faults.length === 0) {
    for (const [port, first, second] of sharedPorts(vms)) {
      faults.push(`--vm: ${port} is a port of ${first} and of ${second}: a port serves one device`);
    }
  }
  if (faults.length > 0) throw new ConfigError(faults);
  return {
    ...config,
    vms,
    threads,
    ...(pinned === undefined ? {} : { cpus: pinned }),
    logLevel: logLevel ?? 'info',
    runDir: flags.runDir ?? config.runDir,
  };
}

/**
 * What a user may do (R21): what the configuration says of them; if it says nothing, the daemon's own user and root may
 * do anything, and others nothing (undefined).
 */
export function accessOf(
  config: DaemonConfig,
  uid: number,
  daemonUid: number = process.getuid!(),
): UserAccess | undefined {
  const listed = config.users.get(uid);
  if (listed !== undefined) return listed;
  if (uid !== 0 && uid !== daemonUid) return undefined;
  return { ports: ['*'], maxPorts: Number.POSITIVE_INFINITY, maxMemory: Number.POSITIVE_INFINITY };
}

/** Whether a user may open a monitor, e.g. "vale0:a/r", of a port of others: a glob has to say so, or "*". */
export function mayMonitor(access: UserAccess, monitor: string): boolean {
  return mayOpen({ ...access, ports: access.ports.filter((glob) => glob === '*' || glob.includes('/')) }, monitor);
}

/** Whether what a user may open includes a port of this name. */
export function mayOpen(access: UserAccess, port: string): boolean {
  return access.ports.some((glob) => {
    const pattern = glob
      .replace(/[.+^${}()|[\]\\]/g, String.raw`\$&`)
      .replaceAll('*', '.*')
      .replaceAll('?', '.');
    return new RegExp(`^${pattern}$`, 's').test(port);
  });
}
