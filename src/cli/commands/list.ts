/** `ptnet list`: what a daemon serves. */
import { setTimeout } from 'node:timers/promises';
import type { Command } from 'commander';
import type { DaemonStatus, PortStatus, RingStatus } from '../../abi/index.ts';
import { defaultRunDir, listDaemon } from '../../api/index.ts';
import { type CommonFlags, command } from '../command.ts';
import { whole } from '../numbers.ts';
import { Cancel } from '../signals.ts';
import { bytesText, durationText, table } from '../table.ts';

export function listCommand(): Command {
  return command('list', 'show the ports, domains and counters of a running daemon', [
    ['ptnet list', 'a table'],
    ['ptnet list --watch 1', 'packets a second, each second, until Ctrl-C'],
    ["ptnet list --json | jq '.domains[].ports[].name'", 'for programs'],
  ])
    .option('--json', "print the daemon's status as JSON")
    .option('--watch <seconds>', 'ports with their packets and drops a second, again and again')
    .action(async (flags: CommonFlags & { json?: boolean; watch?: string }) => {
      const runDir = flags.runDir ?? defaultRunDir();
      if (flags.watch !== undefined) return watch(runDir, whole('--watch', flags.watch, 1, 3600), flags.json ?? false);
      const status = await listDaemon(runDir);
      process.stdout.write(flags.json ? `${JSON.stringify(status, null, 2)}\n` : listText(status));
    });
}

/** Each time a table, on a terminal in the place of the one before; or a line of JSON, the daemon's status. */
async function watch(runDir: string, seconds: number, json: boolean): Promise<void> {
  using cancel = new Cancel();
  let before = await listDaemon(runDir);
  let since = performance.now();
  while (!cancel.cancelled) {
    await setTimeout(100);
    const now = performance.now();
    if (now - since < seconds * 1000) continue;
    const status = await listDaemon(runDir);
    const top = process.stdout.isTTY ? '\u001B[H\u001B[J' : '';
    const text = (): string => `${top}${ratesText(before, status, (now - since) / 1000)}${top === '' ? '\n' : ''}`;
    process.stdout.write(json ? `${JSON.stringify(status)}\n` : text());
    before = status;
    since = now;
  }
}

/** What ports did in the seconds between two looks at them. */
export function ratesText(before: DaemonStatus, now: DaemonStatus, seconds: number): string {
  // A port that is another one by now, or another daemon's, began at 0.
  const key = (p: PortStatus): string => `${p.name} ${p.mac} ${ownerText(p)}`;
  const domains = before.pid === now.pid ? before.domains : [];
  const old = new Map(domains.flatMap((d) => d.ports.map((p) => [key(p), p])));
  const rate = (count: number): string => String(Math.round(count / seconds));
  const rows = now.domains.flatMap((d) =>
    d.ports.map((p) => {
      const { txRings = [], rxRings = [] } = old.get(key(p)) ?? {};
      return [
        p.name,
        ownerText(p),
        state(p),
        rate(packets(p.txRings) - packets(txRings)),
        rate(packets(p.rxRings) - packets(rxRings)),
        drops([...p.txRings, ...p.rxRings], [...txRings, ...rxRings], rate),
      ];
    }),
  );
  const heads = ['PORT', 'OWNER', 'STATE', 'TX/S', 'RX/S', 'DROPS/S'];
  const text = rows.length === 0 ? 'no ports\n' : table(heads, rows, [3, 4]);
  return `ptnet ${now.version}, up ${durationText(now.uptimeSeconds)}, a second of the last ${seconds.toFixed(1)}\n\n${text}`;
}

/** The tables of `ptnet list`. */
export function listText(status: DaemonStatus): string {
  const { pid, version, uptimeSeconds, runDir, domains, regions, vms } = status;
  const parts = [`ptnet ${version}, pid ${pid}, up ${durationText(uptimeSeconds)}, run directory ${runDir}\n`];
  const rows = domains.flatMap((d) =>
    d.ports.map((p) => [
      p.name,
      ownerText(p),
      state(p),
      p.mac,
      ringsText(p),
      String(packets(p.txRings)),
      String(packets(p.rxRings)),
      drops([...p.txRings, ...p.rxRings]),
      p.region,
    ]),
  );
  const heads = ['PORT', 'OWNER', 'STATE', 'MAC', 'RINGS', 'TX PKTS', 'RX PKTS', 'DROPS', 'REGION'];
  parts.push(rows.length === 0 ? 'no ports\n' : table(heads, rows, [5, 6]));
  if (domains.length > 0) {
    const rowOf = (d: (typeof domains)[number]): string[] => [
      d.name,
      d.kind,
      String(d.thread),
      String(d.ports.length),
      d.running ? 'running' : `stopped: ${d.error ?? 'no reason given'}`,
    ];
    parts.push(table(['DOMAIN', 'KIND', 'THREAD', 'PORTS', 'STATE'], domains.map(rowOf), [2, 3]));
  }
  const interfaces = domains.flatMap((d) => d.ports.map((p) => [p.name, p.interface] as const));
  const interfaceRows = interfaces.flatMap(([port, i]) =>
    i === undefined
      ? []
      : [
          [
            i.name,
            port,
            i.zeroCopy === true ? `${i.mode}, zero copy` : i.mode,
            i.gone ? 'gone' : i.running ? 'up' : 'down',
            String(i.mtu),
            i.because ?? '',
          ],
        ],
  );
  if (interfaceRows.length > 0)
    parts.push(table(['INTERFACE', 'PORT', 'BY', 'LINK', 'MTU', 'WHY NOT BETTER'], interfaceRows, [4]));
  if (regions.length > 0) {
    const rowOf = (r: (typeof regions)[number]): string[] => [
      r.name,
      String(r.memId),
      bytesText(r.bytes),
      bytesText(r.pageBytes),
      String(r.buffers),
      String(r.freeBuffers),
      String(r.rings),
      String(r.freeRings),
    ];
    const regionHeads = ['REGION', 'MEMID', 'SIZE', 'PAGES', 'BUFFERS', 'FREE', 'RINGS', 'FREE'];
    parts.push(table(regionHeads, regions.map(rowOf), [1, 2, 3, 4, 5, 6, 7]));
  }
  if (vms.length > 0) {
    const rowOf = (v: (typeof vms)[number]): string[] => [v.name, v.ports.join(' '), `ptnet vm ${v.name}`];
    parts.push(table(['VM', 'PORTS', 'QEMU ARGUMENTS'], vms.map(rowOf)));
  }
  return parts.join('\n');
}

function ownerText(p: PortStatus): string {
  const { owner: o } = p;
  if ('nobody' in o) return p.interface === undefined ? '-' : `host (${p.interface.mode})`;
  return 'vm' in o ? `vm ${o.vm}` : `pid ${o.pid} uid ${o.uid}`;
}

const state = (p: PortStatus): string => (!p.attached ? 'waiting' : p.running ? 'running' : 'attached');

/** "1x1024/1x1024": tx rings and their slots, rx rings and theirs. */
function ringsText({ txRings, rxRings }: PortStatus): string {
  return [txRings, rxRings].map((rings) => `${rings.length}x${rings[0]?.slots ?? 0}`).join('/');
}

const packets = (rings: readonly RingStatus[]): number => rings.reduce((sum, r) => sum + r.packets, 0);

/** "full 12, bad 3", or "-": what was dropped, less what had been dropped before. */
function drops(
  rings: readonly RingStatus[],
  before: readonly RingStatus[] = [],
  number: (count: number) => string = String,
): string {
  const sums = new Map<string, number>();
  const add = (list: readonly RingStatus[], sign: number): void => {
    for (const r of list)
      for (const [reason, n] of Object.entries(r.drops)) sums.set(reason, (sums.get(reason) ?? 0) + sign * n);
  };
  add(rings, 1);
  add(before, -1);
  const text = [...sums].filter(([, n]) => n > 0).map(([reason, n]) => `${reason.replace(/^drop_/, '')} ${number(n)}`);
  return text.length === 0 ? '-' : text.join(', ');
}
