/** lb's options, by netmap's letters. */
import { UsageError } from '../errors.ts';
import { whole } from '../numbers.ts';
import { portName } from '../port-names.ts';

export interface LbFlags {
  i?: string;
  p?: string[];
  B?: string;
  b?: string;
  w?: string;
  W?: boolean;
  s?: string;
  o?: string;
}

export interface Group {
  /** Port that the pipes are pipes of, e.g. "netmap:ids"; undefined: the input. */
  readonly base: string | undefined;
  readonly pipes: number;
}

export interface LbJob {
  readonly port: string;
  readonly groups: readonly Group[];
  readonly extraBufs: number;
  readonly batch: number;
  readonly waitSeconds: number;
  readonly busyWait: boolean;
  /** Seconds between statistics in the log and on stdout; 0: none. */
  readonly logSeconds: number;
  readonly stdoutSeconds: number;
}

/** @throws UsageError, PortNameError */
export function parseLb(flags: LbFlags): LbJob {
  if (flags.i === undefined) throw new UsageError('-i PORT is missing: the port to read from, e.g. -i vale0:x');
  return {
    port: portName(flags.i),
    groups: (flags.p ?? ['2']).map(group),
    extraBufs: whole('-B', flags.B ?? '8192', 0, 65536),
    batch: whole('-b', flags.b ?? '2048', 1, 65536),
    waitSeconds: whole('-w', flags.w ?? '0', 0, 100),
    busyWait: flags.W ?? false,
    logSeconds: whole('-s', flags.s ?? '0', 0, 3600),
    stdoutSeconds: whole('-o', flags.o ?? '0', 0, 3600),
  };
}

/** `NAME:NUMBER` or `NUMBER`; a NAME without netmap: or vale before it is one of netmap:. */
function group(text: string): Group {
  const [, name, number] = /^(?:(.+):)?(\d*)$/.exec(text) ?? [];
  if (number === undefined) throw new UsageError(`-p ${text}: must be [NAME:]NUMBER, e.g. -p 4, -p ids:2`);
  const pipes = number === '' ? 2 : whole('-p', number, 1, 32);
  if (name === undefined) return { base: undefined, pipes };
  return { base: name.startsWith('netmap:') || name.startsWith('vale') ? name : `netmap:${name}`, pipes };
}

/**
 * Names of the pipes' writing ends, group by group: pipes of the same port are numbered on.
 * @param input e.g. "vale0:x" @throws PortNameError: no port with pipes
 */
export function pipeNames(groups: readonly Group[], input: string): string[][] {
  const next = new Map<string, number>();
  return groups.map(({ base = input, pipes }) => {
    const first = next.get(base) ?? 0;
    next.set(base, first + pipes);
    return Array.from({ length: pipes }, (_, i) => portName(`${base}{${first + i}`));
  });
}
