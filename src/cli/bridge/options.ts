/** bridge's options, by netmap's letters. */
import { UsageError } from '../errors.ts';
import { whole } from '../numbers.ts';
import { portName } from '../port-names.ts';

export interface BridgeFlags {
  i?: string[];
  b?: string;
  w?: string;
  c?: boolean;
  L?: boolean;
  v?: boolean;
}

export interface BridgeJob {
  readonly a: string;
  /** The same as `a` with -L: packets go back where they came from. */
  readonly b: string;
  readonly loopback: boolean;
  readonly burst: number;
  readonly waitSeconds: number;
  readonly zeroCopy: boolean;
  readonly verbose: boolean;
}

/** The port of the host's stack at an interface: "netmap:eth1" is "netmap:eth1^". @throws UsageError */
function hostStackOf(port: string): string {
  const [, name, rest] = /^(netmap:[A-Za-z0-9_.]+)([/@].*)?$/.exec(port) ?? [];
  if (name !== undefined) return `${name}^${rest ?? ''}`;
  throw new UsageError(
    `bridge needs two ports: a single interface (netmap:IF) is joined with the host's stack, which ${port} has not; ` +
      '-L sends what it receives back to it',
  );
}

/** @param words what stands behind the options: [ifa [ifb [burst]]] @throws UsageError, PortNameError */
export function parseBridge(flags: BridgeFlags, words: readonly string[]): BridgeJob {
  const given = flags.i ?? [];
  if (given.length > 2) throw new UsageError('-i: at most two ports');
  const one = words[0] ?? given[0];
  if (one === undefined) throw new UsageError('-i PORT is missing: the ports to join, e.g. -i vale0:x -i vale1:x');
  const first = portName(one);
  const b = portName(words[1] ?? given[1] ?? first);
  const loopback = flags.L ?? false;
  const a = first === b && !loopback ? hostStackOf(first) : first;
  if (loopback && a !== b) throw new UsageError('-L is for one port, not two');
  return {
    a,
    b,
    loopback,
    burst: whole('-b', words[2] ?? flags.b ?? '1024', 1, 8192),
    waitSeconds: whole('-w', flags.w ?? '0', 0, 100),
    zeroCopy: !flags.c,
    verbose: flags.v ?? false,
  };
}
