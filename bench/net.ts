/**
 * Two network namespaces: a TCP stream (iperf3, Gbit/s) and request/response (flood ping of 64 bytes, round trips a
 * second), over ptnet with and without the VirtIO header, and in the same run over veth + bridge and TAP + bridge, which
 * are the measure. Needs root, iproute2, iperf3 and ping; asserts nothing.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { Host, Lab, netSkip } from '../tests/net/lab.ts';
import type { Context, Row } from './bench.ts';
import { conditions, interleave, ratio } from './bench.ts';

/** What the others are compared with, with offloads or without like themselves. */
const VETH = 'veth + bridge';
const TAP = 'TAP + bridge';
const plain = (name: string): boolean => name.includes(', no ');
const relay = fileURLToPath(new URL('tap-relay.js', import.meta.url));
const address = (i: number): string => `10.79.0.${i}`;

interface Net {
  readonly a: Host;
  readonly b: Host;
  close(): Promise<void>;
}

/** A namespace held by a process that prints a line and sleeps. */
async function namespace(
  program = 'sh',
  args: readonly string[] = ['-c', 'echo ready; exec sleep 1000'],
): Promise<Host> {
  const child: ChildProcess = spawn('unshare', ['-n', program, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  const host = new Host(child, program);
  await once(child.stdout!, 'data');
  return host;
}

async function ip(host: Host, ...commands: string[]): Promise<void> {
  for (const command of commands) {
    const { status, stderr } = await host.run('ip', command.split(' '));
    if (status !== 0) throw new Error(`ip ${command}: ${stderr}`);
  }
}

const stopAll = async (hosts: readonly Host[]): Promise<void> => {
  for (const host of hosts) await host.stop();
};

async function ptnet(...words: string[]): Promise<Net> {
  const lab = await Lab.start();
  const up = (port: string, i: number): Promise<Host> => lab.host(port, 'inet', `${address(i)}/24`, ...words);
  return { a: await up('vale0:a', 1), b: await up('vale0:b', 2), close: () => lab.close() };
}

/** @param offloads false: the hosts' ends send complete frames of the MTU's size */
async function veth(offloads: boolean): Promise<Net> {
  const bridge = await namespace();
  await ip(bridge, 'link add br0 type bridge', 'link set br0 up');
  const hosts: Host[] = [];
  for (const i of [1, 2]) {
    const host = await namespace();
    await ip(bridge, `link add v${i} type veth peer name e0 netns ${host.pid}`);
    await ip(bridge, `link set v${i} master br0`, `link set v${i} up`);
    await ip(host, `addr add ${address(i)}/24 dev e0`, 'link set e0 up');
    if (!offloads) await host.run(process.execPath, [relay, 'no-offloads', 'e0']);
    hosts.push(host);
  }
  return { a: hosts[0]!, b: hosts[1]!, close: () => stopAll([...hosts, bridge]) };
}

/** Each host has a TAP interface; a process of ours copies between it and another one on a bridge, as for a VM. */
async function tap(header: boolean): Promise<Net> {
  const bridge = await namespace();
  await ip(bridge, 'link add br0 type bridge', 'link set br0 up');
  const hosts: Host[] = [];
  for (const i of [1, 2]) {
    const host = await namespace(process.execPath, [relay, 'relay', header ? '12' : '0']);
    await ip(host, `link set far0 netns ${bridge.pid} name t${i}`);
    await ip(bridge, `link set t${i} master br0`, `link set t${i} up`);
    await ip(host, `addr add ${address(i)}/24 dev near0`, 'link set near0 up');
    hosts.push(host);
  }
  return { a: hosts[0]!, b: hosts[1]!, close: () => stopAll([...hosts, bridge]) };
}

const nets: Readonly<Record<string, () => Promise<Net>>> = {
  [VETH]: () => veth(true),
  [`${VETH}, no offloads`]: () => veth(false),
  [TAP]: () => tap(true),
  [`${TAP}, no header`]: () => tap(false),
  ptnet: () => ptnet(),
  'ptnet, no header': () => ptnet('--vnet-hdr', '0'),
};

async function stream({ a, b }: Net, ms: number): Promise<number> {
  const server = await b.serve('iperf3', ['-s', '-1', '--forceflush']);
  try {
    const seconds = String(Math.max(1, Math.round(ms / 1000)));
    const { stdout } = await a.run('iperf3', ['-c', address(2), '-t', seconds, '-J'], 60);
    const report = JSON.parse(stdout) as { error?: string; end: { sum_received: { bits_per_second: number } } };
    if (report.error !== undefined) throw new Error(report.error);
    return report.end.sum_received.bits_per_second / 1e9;
  } finally {
    server.kill('SIGKILL');
  }
}

async function roundTrips({ a }: Net, ms: number): Promise<number> {
  const seconds = String(Math.max(1, Math.round(ms / 1000)));
  const { stdout } = await a.run('ping', ['-f', '-q', '-w', seconds, '-s', '56', address(2)], 60);
  const average = /= [\d.]+\/([\d.]+)\//.exec(stdout)?.[1];
  if (average === undefined) throw new Error(`ping: ${stdout}`);
  return 1000 / Number(average);
}

export async function benchNet(context: Context): Promise<Row[]> {
  const missing = netSkip('iperf3', 'ping', 'ip');
  if (missing !== false) {
    context.progress(`net: not measured: ${missing}`);
    return [];
  }
  const measured = async (name: string, figure: (net: Net, ms: number) => Promise<number>): Promise<number> => {
    const net = await nets[name]!();
    try {
      // Addresses are resolved, code is compiled.
      await net.a.run('ping', ['-c', '3', '-i', '0.1', address(2)]);
      return await figure(net, context.ms);
    } finally {
      await net.close();
    }
  };
  const rows: Row[] = [];
  for (const [what, measure] of [
    ['stream, Gbit/s', stream],
    ['request/response, 1/s', roundTrips],
  ] as const) {
    const variants = Object.keys(nets).map((name) => ({ name, run: () => measured(name, measure) }));
    const figures = await interleave(context, variants);
    for (const figure of figures) {
      const { name, value, error } = figure;
      const to = (kind: string): number =>
        ratio(
          figure,
          figures.find((f) => f.name.startsWith(kind) && plain(f.name) === plain(name)),
        );
      rows.push({
        bench: 'net',
        what,
        over: name,
        value,
        toVeth: to(VETH),
        toTap: to(TAP),
        rounds: figure.rounds,
        ...conditions(figure.conditions),
        ...(error ? { error } : {}),
      });
    }
  }
  return rows;
}
