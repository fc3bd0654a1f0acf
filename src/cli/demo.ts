/**
 * What `ptnet demo` (and ./start) shows: a daemon with a VALE switch, two guests as processes, packets between them for
 * some seconds, then round trips. Entry points: demo, demoText.
 */
import { setTimeout } from 'node:timers/promises';
import { Lab } from './lab.ts';
import type { RttResult } from './pkt-gen/report.ts';

export interface DemoOptions {
  /** How long packets are sent, and how long the idle daemon is watched. */
  readonly seconds: number;
  /** Bytes of a packet. */
  readonly size: number;
  /** Most round trips. */
  readonly pings: number;
  /** Told what happens now. */
  readonly progress: (text: string) => void;
}

export interface DemoResult {
  readonly size: number;
  readonly sent: number;
  readonly sentSeconds: number;
  readonly received: number;
  readonly receivedSeconds: number;
  /** Lost because the receiver's ring was full, as the daemon counted. */
  readonly droppedFull: number;
  readonly rtt: RttResult;
  /** Part of one CPU that the daemon used while its guests were silent, 0 to 1 (more with several threads). */
  readonly idleCpu: number;
  readonly idleSeconds: number;
}

const A = 'vale0:a';
const B = 'vale0:b';
/** How long the receiver gets to take what is still in its ring. */
const SETTLE_MS = 200;

/** @throws Error if something failed, or packets were lost without being counted */
export async function demo(options: DemoOptions): Promise<DemoResult> {
  options.progress('starting a daemon and a guest that receives');
  const lab = await Lab.start();
  let interrupt = (): void => undefined;
  const interrupted = new Promise<never>((_, reject) => (interrupt = () => reject(new Error('interrupted'))));
  process.once('SIGINT', interrupt).once('SIGTERM', interrupt);
  try {
    return await Promise.race([show(lab, options), interrupted]);
  } finally {
    process.off('SIGINT', interrupt).off('SIGTERM', interrupt);
    await lab.stop();
  }
}

async function show(lab: Lab, { seconds, size, pings, progress }: DemoOptions): Promise<DemoResult> {
  const rx = lab.pktGen(['-i', B, '-f', 'rx']);
  const { mac } = await lab.running(B);
  progress(`nobody sends: watching the daemon's CPU for ${seconds} s`);
  const before = lab.cpuSeconds();
  await setTimeout(seconds * 1000);
  const idleCpu = (lab.cpuSeconds() - before) / seconds;

  progress(`a second guest sends ${size}-byte packets for ${seconds} s`);
  const tx = lab.pktGen(['-i', A, '-f', 'tx', '-l', String(size), '-D', mac]);
  await lab.running(A);
  await setTimeout(seconds * 1000);
  tx.interrupt();
  const sent = await tx.result;
  await setTimeout(SETTLE_MS);
  const counted = lab.port(await lab.status(), B)?.rxRings.map((r) => r.drops['full'] ?? 0) ?? [];
  rx.interrupt();
  const received = await rx.result;
  await lab.closed(B);

  progress('ping-pong between two guests');
  const pong = lab.pktGen(['-i', B, '-f', 'pong']);
  const answering = await lab.running(B);
  const ping = lab.pktGen(['-i', A, '-f', 'ping', '-n', String(pings), '-D', answering.mac]);
  const limit = setTimeout(10_000, undefined, { ref: false }).then(() => ping.interrupt());
  const { rtt } = await Promise.race([ping.result, limit.then(() => ping.result)]);
  pong.interrupt();
  await pong.result;
  if (rtt === undefined) throw new Error('ping reported no round trips');

  const result: DemoResult = {
    size,
    sent: sent.packets,
    sentSeconds: sent.seconds,
    received: received.packets,
    receivedSeconds: received.seconds,
    droppedFull: counted.reduce((x, y) => x + y, 0),
    rtt,
    idleCpu,
    idleSeconds: seconds,
  };
  check(result);
  return result;
}

/** @throws Error if what was seen cannot be right */
function check({ sent, received, droppedFull, rtt }: DemoResult): void {
  if (received === 0) throw new Error(`${sent} packets were sent, none was received`);
  if (sent !== received + droppedFull) {
    throw new Error(
      `${sent} packets were sent, ${received} received, ${droppedFull} counted as dropped: the rest is lost`,
    );
  }
  if (rtt.received === 0) throw new Error(`${rtt.sent} pings were sent, none was answered`);
}

const count = (n: number): string => n.toLocaleString('en-US');
const mpps = (packets: number, seconds: number): string => `${(packets / seconds / 1e6).toFixed(2)} Mpps`;
const us = (ns: number): string => `${(ns / 1000).toFixed(1)} µs`;

/** The summary, a line for each thing. */
export function demoText(r: DemoResult): string {
  const { rtt } = r;
  const lost = rtt.sent - rtt.received;
  const rows: [string, string, string][] = [
    [
      'sent',
      count(r.sent),
      `packets of ${r.size} bytes in ${r.sentSeconds.toFixed(2)} s: ${mpps(r.sent, r.sentSeconds)}`,
    ],
    ['received', count(r.received), `in ${r.receivedSeconds.toFixed(2)} s: ${mpps(r.received, r.receivedSeconds)}`],
    [
      'dropped',
      count(r.droppedFull),
      `(${((100 * r.droppedFull) / r.sent).toFixed(1)} %), the receiver's ring was full: VALE drops then`,
    ],
    [
      'ping-pong',
      count(rtt.received),
      `round trips, p50 ${us(rtt.p50Ns)}, p99 ${us(rtt.p99Ns)}${lost > 0 ? `, ${lost} lost` : ''}`,
    ],
    [
      'idle daemon',
      `${(100 * r.idleCpu).toFixed(1)} %`,
      `of one CPU, seen over ${r.idleSeconds} s with a guest waiting`,
    ],
  ];
  const width = Math.max(...rows.map(([, n]) => n.length));
  return rows.map(([what, n, more]) => `  ${what.padEnd(12)} ${n.padStart(width)}  ${more}\n`).join('');
}
