/** `ptnet dump`: what passes through a port, as pcap or pcapng. docs/dump.md describes it. */
import { setImmediate, setTimeout } from 'node:timers/promises';
import type { Command } from 'commander';
import { listDaemon, NS_MOREFRAG, NS_TXMON, openPort, POLLIN } from '../../api/index.ts';
import { type CommonFlags, command } from '../command.ts';
import { CaptureFiles, type FilePlan } from '../dump/files.ts';
import { UsageError } from '../errors.ts';
import { whole } from '../numbers.ts';
import { INBOUND, OUTBOUND } from '../pcap/writer.ts';
import { portName } from '../port-names.ts';
import type { PktPort } from '../pkt-gen/run.ts';
import { Cancel } from '../signals.ts';

export interface DumpFlags {
  i?: string;
  w?: string;
  s?: string;
  c?: string;
  C?: string;
  W?: string;
  Q?: string;
  pcap?: boolean;
}

/** Longest time in poll(2) without a look at signals, and before what was captured is written. */
const POLL_MS = 100;
const BREATH_MS = 10;
/** Time between two tries to write to a reader that takes nothing. */
const STALLED_MS = 5;
const DIRECTIONS: Readonly<Record<string, string>> = { in: '/r', out: '/t', inout: '/rt' };

export function dumpCommand(): Command {
  return command('dump', 'capture what passes through a port, to a file or for Wireshark and tcpdump', [
    ['ptnet dump -i vale0:x -w x.pcapng', 'both directions, until Ctrl-C'],
    ['ptnet dump -i vale0:x | wireshark -k -i -', 'live'],
    ['ptnet dump -i vale0:x --pcap -c 100 | tcpdump -r -', 'a hundred packets, as text'],
    ['ptnet dump -i vale0:x -w /var/tmp/x -C 100 -W 10', 'the last 1000 million bytes, in ten files'],
  ])
    .option('-i <port>', 'the port; a monitor with other flags may be named (vale0:x/z, vale0:x-1/r)')
    .option('-w <file>', 'where to write; - is stdout (default: -)')
    .option('-Q <direction>', 'in, out or inout, as seen by the user of the port (default: inout)')
    .option('-s <bytes>', 'most bytes of a packet that are kept (default: 262144)')
    .option('-c <count>', 'end after so many packets')
    .option('-C <millions>', 'begin another file when one has so many million bytes')
    .option('-W <files>', 'with -C: after so many files, write over the first')
    .option('--pcap', 'pcap with nanoseconds instead of pcapng (default for names that end with .pcap)')
    .action((flags: DumpFlags & CommonFlags) => dump(flags));
}

/** @throws UsageError, PortNameError */
export function parseDump(flags: DumpFlags): {
  readonly port: string;
  readonly count: number;
  readonly plan: FilePlan;
} {
  if (flags.i === undefined) throw new UsageError('-i PORT is missing: the port to watch, e.g. -i vale0:x');
  const direction = DIRECTIONS[flags.Q ?? 'inout'];
  if (direction === undefined) throw new UsageError(`-Q ${flags.Q}: must be in, out or inout`);
  const path = flags.w ?? '-';
  const fileBytes = whole('-C', flags.C ?? '0', 0, 1_000_000) * 1e6;
  const fileCount = whole('-W', flags.W ?? '0', 0, 100_000);
  if (path === '-' && fileBytes > 0) throw new UsageError('-C is for files: say one with -w');
  if (fileCount > 0 && fileBytes === 0) throw new UsageError('-W FILES is for -C, which says how large a file becomes');
  const [, name = '', options = ''] = /^([^@]*)(.*)$/.exec(portName(flags.i)) ?? [];
  // A port of this machine is a monitor already, or none: its host has chosen.
  const isMachines = /^ptnet:\d+$/.test(name);
  if (isMachines && flags.Q !== undefined)
    throw new UsageError(`-Q ${flags.Q}: the host has chosen what ${name} shows`);
  const monitor = isMachines || name.includes('/') ? name : name + direction;
  return {
    port: monitor + options,
    count: whole('-c', flags.c ?? '0', 0, Number.MAX_SAFE_INTEGER),
    plan: {
      path,
      format: flags.pcap || path.endsWith('.pcap') ? 'pcap' : 'pcapng',
      snapLen: whole('-s', flags.s ?? '262144', 1, 262144),
      fileBytes,
      fileCount,
    },
  };
}

async function dump(flags: DumpFlags & CommonFlags): Promise<void> {
  const { port: name, count, plan } = parseDump(flags);
  if (plan.path === '-' && process.stdout.isTTY)
    throw new UsageError('-w FILE is missing: captures are not for terminals');
  using cancel = new Cancel();
  const port = await openPort(name, flags.runDir === undefined ? {} : { runDir: flags.runDir });
  try {
    const files = new CaptureFiles(plan, name);
    process.stderr.write(`listening on ${name}, ${plan.format}, snapshot length ${plan.snapLen} bytes\n`);
    try {
      try {
        await dumpLoop(port, files, count, cancel);
      } finally {
        files.close(); // also when the port is gone
      }
    } catch (e) {
      // Whoever read the pipe has seen enough.
      if ((e as NodeJS.ErrnoException).code !== 'EPIPE') throw e;
    } finally {
      const lost = await lostPackets(flags.runDir);
      const why = lost > 0 ? ': dump was too slow, a longer ring helps (docs/dump.md)' : '';
      process.stderr.write(`${files.packets} packets captured\n${lost} packets lost${why}\n`);
    }
  } finally {
    await port.close();
  }
}

/** Packets that this process's monitor had no room for. */
async function lostPackets(runDir: string | undefined): Promise<number> {
  const { domains } = await listDaemon(runDir).catch(() => ({ domains: [] }));
  const mine = domains.flatMap((d) => d.ports).filter(({ owner }) => 'pid' in owner && owner.pid === process.pid);
  return mine.flatMap((p) => p.rxRings).reduce((sum, { drops }) => sum + (drops['full'] ?? 0), 0);
}

/** Writes what comes until there are `count` packets (0: no limit) or it is cancelled. @returns packets */
export async function dumpLoop(
  port: PktPort,
  files: CaptureFiles,
  count: number,
  cancel: { readonly cancelled: boolean },
): Promise<number> {
  const { u8 } = port.m;
  let packets = 0;
  let breathAt = 0;
  for (;;) {
    const now = performance.now();
    if (now >= breathAt) {
      files.flush();
      await (files.full ? setTimeout(STALLED_MS) : setImmediate());
      breathAt = now + BREATH_MS;
    }
    if (cancel.cancelled) return packets;
    if (files.full) {
      breathAt = 0;
      continue;
    }
    if (port.poll(POLLIN, POLL_MS) === 0) {
      breathAt = 0;
      continue;
    }
    const time = performance.timeOrigin + performance.now();
    const seconds = Math.floor(time / 1000);
    const nanoseconds = Math.floor((time - seconds * 1000) * 1e6);
    for (let r = 0; r < port.rxRings.length; r++) {
      const ring = port.rxRings[r]!;
      let at = ring.head;
      while (at !== ring.tail && !files.full) {
        const writer = files.next();
        writer.begin(seconds, nanoseconds, (ring.flags(at) & NS_TXMON) === 0 ? INBOUND : OUTBOUND);
        for (let more = NS_MOREFRAG; more !== 0 && at !== ring.tail; at = ring.next(at)) {
          more = ring.flags(at) & NS_MOREFRAG;
          writer.add(u8, ring.bufOfs(at), Math.min(ring.len(at), port.bufSize));
        }
        writer.end();
        packets += 1;
        if (packets === count) break;
      }
      ring.head = at;
      ring.cur = at;
      if (packets === count && count > 0) return packets;
    }
  }
}
