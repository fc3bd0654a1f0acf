/** `ptnet list`: what a daemon serves. */
import type { Command } from 'commander';
import type { DaemonStatus, PortStatus, RingStatus } from '../../abi/index.ts';
import { defaultRunDir, listDaemon } from '../../api/index.ts';
import { type CommonFlags, command } from '../command.ts';
import { bytesText, durationText, table } from '../table.ts';

export function listCommand(): Command {
  return command('list', 'show the ports, domains and counters of a running daemon', [
    ['ptnet list', 'a table'],
    ["ptnet list --json | jq '.domains[].ports[].name'", 'for programs'],
  ])
    .option('--json', "print the daemon's status as JSON")
    .action(async (flags: CommonFlags & { json?: boolean }) => {
      const status = await listDaemon(flags.runDir ?? defaultRunDir());
      process.stdout.write(flags.json ? `${JSON.stringify(status, null, 2)}\n` : listText(status));
    });
}

/** The tables of `ptnet list`. */
export function listText(status: DaemonStatus): string {
  const { pid, version, uptimeSeconds, runDir, domains, regions, vms } = status;
  const parts = [`ptnet ${version}, pid ${pid}, up ${durationText(uptimeSeconds)}, run directory ${runDir}\n`];
  const rows = domains.flatMap((d) =>
    d.ports.map((p) => [
      p.name,
      owner(p),
      !p.attached ? 'waiting' : p.running ? 'running' : 'attached',
      p.mac,
      ringsText(p),
      packets(p.txRings),
      packets(p.rxRings),
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

function owner(p: PortStatus): string {
  const { owner: o } = p;
  if ('nobody' in o) return p.interface === undefined ? '-' : `host (${p.interface.mode})`;
  return 'vm' in o ? `vm ${o.vm}` : `pid ${o.pid} uid ${o.uid}`;
}

/** "1x1024/1x1024": tx rings and their slots, rx rings and theirs. */
function ringsText({ txRings, rxRings }: PortStatus): string {
  return [txRings, rxRings].map((rings) => `${rings.length}x${rings[0]?.slots ?? 0}`).join('/');
}

const packets = (rings: readonly RingStatus[]): string => String(rings.reduce((sum, r) => sum + r.packets, 0));

/** "full 12, bad 3", or "-". */
function drops(rings: readonly RingStatus[]): string {
  const sums = new Map<string, number>();
  for (const r of rings) {
    for (const [reason, n] of Object.entries(r.drops)) sums.set(reason, (sums.get(reason) ?? 0) + n);
  }
  const text = [...sums].filter(([, n]) => n > 0).map(([reason, n]) => `${reason.replace(/^drop_/, '')} ${n}`);
  return text.length === 0 ? '-' : text.join(', ');
}
