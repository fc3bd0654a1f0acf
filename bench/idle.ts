/**
 * What nobody's traffic and little traffic cost: CPU time of the daemon, the sender and the receiver, in percent of one
 * CPU, at 0, 1,000 and 100,000 packets a second and as fast as possible. The pacing sender is awake between its bursts
 * (pkt-gen's precision), so its figure says little.
 */
import { setTimeout } from 'node:timers/promises';
import { Lab } from '../src/cli/lab.ts';
import type { Context, Row } from './bench.ts';
import { conditions, WARM_MS } from './bench.ts';
import { RX, TX } from './guests.ts';
import { cpuSeconds } from './process.ts';

const RATES = [0, 1000, 100_000, Number.POSITIVE_INFINITY];

export async function benchIdle({ quiet, ms, progress }: Context): Promise<Row[]> {
  const lab = await Lab.start();
  try {
    const rows: Row[] = [];
    for (const rate of RATES) {
      progress(`idle: ${rate} packets a second`);
      const seen = await quiet.wait();
      rows.push({ bench: 'idle', ...(await load(lab, rate, ms)), ...conditions([seen]) });
    }
    return rows;
  } finally {
    await lab.stop();
  }
}

async function load(lab: Lab, rate: number, ms: number): Promise<Omit<Row, 'bench'>> {
  const rx = lab.pktGen(['-i', RX, '-f', 'rx']);
  const { mac } = await lab.running(RX);
  const limit = Number.isFinite(rate) ? ['-R', String(rate)] : [];
  const tx = rate === 0 ? undefined : lab.pktGen(['-i', TX, '-f', 'tx', '-D', mac, ...limit]);
  if (tx !== undefined) await lab.running(TX);
  await setTimeout(WARM_MS);
  const pids = [lab.daemonPid, rx.pid, ...(tx === undefined ? [] : [tx.pid])];
  const before = pids.map(cpuSeconds);
  const start = performance.now();
  await setTimeout(ms);
  const seconds = (performance.now() - start) / 1000;
  const [daemon = 0, receiver = 0, sender = 0] = pids.map((pid, i) => (100 * (cpuSeconds(pid) - before[i]!)) / seconds);
  tx?.interrupt();
  const sent = await tx?.result;
  rx.interrupt();
  await rx.result;
  await Promise.all([lab.closed(RX), lab.closed(TX)]);
  return {
    wantedPps: Number.isFinite(rate) ? rate : 'most',
    sentPps: Math.round(sent?.packetsPerSecond ?? 0),
    daemonPercent: daemon,
    receiverPercent: receiver,
    senderPercent: sender,
  };
}
