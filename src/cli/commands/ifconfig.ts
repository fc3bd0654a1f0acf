/** `ptnet ifconfig`: shows the interfaces that `ptnet up` made in this network namespace, and changes them. */
import { readFileSync } from 'node:fs';
import { networkInterfaces } from 'node:os';
import type { Command } from 'commander';
import {
  defaultRunDir,
  errno,
  interfaceEther,
  interfaceFeature,
  interfaceFlags,
  interfaceInet,
  interfaceMtu,
  SysError,
} from '../../os/index.ts';
import { type CommonFlags, command } from '../command.ts';
import { UsageError } from '../errors.ts';
import { applyWords, parseWords } from '../ifconfig-words.ts';
import { type InterfaceRecord, recordedInterfaces } from '../interfaces.ts';

export function ifconfigCommand(): Command {
  return command('ifconfig', 'show or change the interfaces that "ptnet up" made in this network namespace', [
    ['ptnet ifconfig', 'all of them: flags, options, MTU, addresses, counters'],
    ['ptnet ifconfig ptnet0 mtu 9000 -tso', 'change one'],
  ])
    .argument('[interface]')
    .argument('[words...]', 'inet, inet6, mtu, ether, up, down, promisc, -promisc, txcsum, -txcsum, tso, -tso')
    .allowUnknownOption()
    .action((name: string | undefined, words: string[], flags: CommonFlags) => {
      const all = recordedInterfaces(flags.runDir ?? defaultRunDir());
      const records = name === undefined ? all : all.filter((r) => r.name === name);
      if (name !== undefined && records.length === 0) {
        throw new SysError(`no "ptnet up" has an interface ${name} in this network namespace`, errno.ENODEV);
      }
      const given = parseWords(words);
      if (given.rxcsum !== undefined || given.lro !== undefined) {
        throw new UsageError('rxcsum and lro are chosen when the interface is made: ptnet up');
      }
      if (words.length > 0) applyWords(records[0]!.name, given);
      else if (records.length === 0) process.stderr.write('no "ptnet up" has an interface in this network namespace\n');
      else process.stdout.write(records.map((r) => interfaceText(r)).join(''));
    });
}

/** Names of flags (net/if.h), by bit. */
const FLAGS = new Map([
  [0x1, 'UP'],
  [0x2, 'BROADCAST'],
  [0x40, 'RUNNING'],
  [0x100, 'PROMISC'],
  [0x200, 'ALLMULTI'],
  [0x1000, 'MULTICAST'],
]);

/** What ifconfig(8) would print of an interface. */
function interfaceText(r: InterfaceRecord): string {
  const { name } = r;
  const flags = interfaceFlags(name);
  const names = [...FLAGS].filter(([bit]) => (flags & bit) !== 0).map(([, text]) => text);
  const tso = interfaceFeature(name, 'tso');
  const options = [
    ...(r.rxcsum ? ['RXCSUM', 'RXCSUM_IPV6'] : []),
    ...(interfaceFeature(name, 'txcsum') ? ['TXCSUM', 'TXCSUM_IPV6'] : []),
    ...(tso ? ['TSO4', 'TSO6'] : []),
    ...(r.lro ? ['LRO'] : []),
    'VLAN_MTU',
    'JUMBO_MTU',
  ];
  const ether = [...interfaceEther(name)].map((b) => b.toString(16).padStart(2, '0')).join(':');
  const c = counters(name);
  const lines = [
    `${name}: flags=${flags.toString(16)}<${names.join(',')}> mtu ${interfaceMtu(name)}`,
    `options=<${options.join(',')}>`,
    `ether ${ether}`,
    ...addresses(name),
    `port ${r.port}, pid ${r.pid}, VirtIO header ${r.vnetHdrLen} bytes, ${r.queues} queue${r.queues === 1 ? '' : 's'}`,
    `RX packets ${c.rx[1]} bytes ${c.rx[0]} errors ${c.rx[2]} dropped ${c.rx[3]}`,
    `TX packets ${c.tx[1]} bytes ${c.tx[0]} errors ${c.tx[2]} dropped ${c.tx[3]}`,
    `status: ${(flags & 0x40) !== 0 ? 'active' : 'no carrier'}`,
  ];
  return `${lines.join('\n\t')}\n`;
}

function addresses(name: string): string[] {
  const known = (networkInterfaces()[name] ?? []).map((a) => {
    const prefix = a.cidr?.split('/')[1] ?? '';
    return a.family === 'IPv4'
      ? `inet ${a.address} netmask ${a.netmask}`
      : `inet6 ${a.address}${a.scopeid ? `%${name}` : ''} prefixlen ${prefix}`;
  });
  // An interface that is down is not among those; it keeps its IPv4 address.
  const inet = known.length > 0 ? undefined : interfaceInet(name);
  return inet === undefined ? known : [`inet ${inet.address.join('.')} netmask ${inet.netmask.join('.')}`];
}

/** [bytes, packets, errors, dropped] of each direction. */
function counters(name: string): { rx: string[]; tx: string[] } {
  // /proc shows the reader's network namespace; what is mounted at /sys may show another.
  const lines = readFileSync('/proc/self/net/dev', 'utf8').split('\n');
  const line = lines.map((l) => l.trim().split(/[:\s]+/)).find(([first]) => first === name);
  const fields = line?.slice(1) ?? [];
  return { rx: fields.slice(0, 4), tx: fields.slice(8, 12) };
}
