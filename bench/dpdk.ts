/**
 * Pairs of dpdk-testpmd, one sending and one receiving, each polling on a CPU of its own: memif (shared memory) and vhost
 * with virtio-user. Without huge pages, so nothing has to be set up.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { median } from './quiet.ts';

export type DpdkPair = 'memif' | 'vhost';

/** How long a pair may take to connect and begin, ms. */
const START_MS = 10_000;

/** The devices of both sides: the one that listens, the one that connects. */
function devices(pair: DpdkPair, socket: string, slots: number): [string, string] {
  if (pair === 'vhost') {
    return [
      `net_vhost0,iface=${socket},queues=1`,
      `net_virtio_user0,path=${socket},queues=1,queue_size=${Math.min(slots, 1024)}`,
    ];
  }
  const memif = `net_memif0,socket=${socket},socket-abstract=no,rsize=${Math.log2(slots)}`;
  return [`${memif},role=server`, `${memif},role=client`];
}

/**
 * Millions of packets per second received.
 * @param testpmd path of dpdk-testpmd @param slots of a ring, a power of two @param ms how long
 */
export async function dpdkPair(
  testpmd: string,
  pair: DpdkPair,
  size: number,
  slots: number,
  ms: number,
): Promise<number> {
  return run(testpmd, pair, slots, ms, ['--forward-mode=rxonly'], ['--forward-mode=txonly', `--txpkts=${size}`]);
}

/** Mean µs of a round trip: one packet goes to and fro, each side forwards it where it came from. */
export async function memifRoundTrip(testpmd: string, ms: number): Promise<number> {
  const forward = ['--forward-mode=io', '--port-topology=loop', '--burst=1'];
  return 1 / (await run(testpmd, 'memif', 1024, ms, forward, [...forward, '--tx-first']));
}

/** Millions of packets per second that the side which listens receives. */
async function run(
  testpmd: string,
  pair: DpdkPair,
  slots: number,
  ms: number,
  listener: readonly string[],
  connector: readonly string[],
): Promise<number> {
  const dir = mkdtempSync(join(tmpdir(), 'ptnet-dpdk-'));
  const children: ChildProcess[] = [];
  const start = (device: string, cpu: number, args: readonly string[]): ChildProcess => {
    const eal = ['--no-huge', '-m', '256', '--no-pci', '--lcores', `0@${cpu},1@${cpu}`, '--vdev', device];
    const prefix = ['--file-prefix', `ptnet${process.pid}-${cpu}`, '--no-telemetry'];
    const common = ['--total-num-mbufs=20000', '--stats-period', '1', ...args];
    const child = spawn(testpmd, [...eal, ...prefix, '--', ...common], { stdio: ['ignore', 'pipe', 'ignore'] });
    children.push(child);
    return child;
  };
  try {
    const [listening, connecting] = devices(pair, join(dir, 'socket'), slots);
    const rx = start(listening, 0, listener);
    let text = '';
    rx.stdout?.on('data', (data: Buffer) => (text += data.toString()));
    await setTimeout(1000);
    start(connecting, 1, connector);
    // A figure each second; the first ones are from before and from the beginning.
    const wanted = 2 + Math.ceil(ms / 1000);
    const figures = (): number[] => [...text.matchAll(/Rx-pps:\s+(\d+)/g)].map((m) => Number(m[1]) / 1e6);
    const flowing = (): number[] =>
      figures().slice(
        Math.max(
          0,
          figures().findIndex((mpps) => mpps > 0),
        ),
      );
    for (const end = performance.now() + START_MS + ms; performance.now() < end; await setTimeout(50)) {
      if (flowing().length > wanted && flowing()[0]! > 0) return median(flowing().slice(2));
      if (rx.exitCode !== null) throw new Error(`dpdk-testpmd ended with status ${rx.exitCode}`);
    }
    throw new Error(`a ${pair} pair of dpdk-testpmd received nothing`);
  } finally {
    for (const child of children) if (child.exitCode === null) child.kill('SIGINT');
    await Promise.all(children.map((child) => Promise.race([ended(child), setTimeout(3000)])));
    for (const child of children) if (child.exitCode === null) child.kill('SIGKILL');
    rmSync(dir, { recursive: true, force: true });
  }
}

async function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode === null && child.signalCode === null) await once(child, 'close');
}
