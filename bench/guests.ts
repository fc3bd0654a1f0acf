/**
 * Two guest processes through the daemon: pkt-gen tx to pkt-gen rx over one VALE switch or a pipe. What a user of the whole system
 * gets, receiver's drops included.
 */
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Lab } from '../src/cli/lab.ts';
import type { Context, Row } from './bench.ts';
import { conditions, WARM_MS } from './bench.ts';

/** The ends of a pipe. */
export const PIPE_TX = 'netmap:bench{1';
export const PIPE_RX = 'netmap:bench}1';

/** How two guests send to one another. */
export interface Stream {
  /** Ports, VALE's or a pipe's ends. */
  readonly tx: string;
  readonly rx: string;
  /** Bytes of a packet. */
  readonly size: number;
  /** Slots of each ring of both ports. */
  readonly slots: number;
  /** Packets that the sender hands over at a time. */
  readonly batch: number;
  /** Packets a second; 0: as many as possible. */
  readonly rate?: number;
  /** The CPU that both guests are pinned to; left out: none. */
  readonly cpu?: number;
}

export interface StreamResult {
  /** Millions of packets a second that left the sender's rings, and that came into the receiver's. */
  readonly sentMpps: number;
  readonly mpps: number;
  /** Part of the packets that were dropped because the receiver's ring was full, 0 to 1. */
  readonly dropped: number;
}

const SIZES = [60, 512, 1514];
const SLOTS = [1024, 4096];
const BATCHES = [1, 16, 64];
const RECEIVER = fileURLToPath(new URL('receiver.js', import.meta.url));
/** How long the receiver gets to take what is still in its ring. */
const SETTLE_MS = 200;
export const TX = 'vale0:tx';
export const RX = 'vale0:rx';

export async function benchGuests(context: Context): Promise<Row[]> {
  const shapes: Stream[] = [];
  for (const size of SIZES) {
    for (const slots of SLOTS) shapes.push({ tx: TX, rx: RX, size, slots, batch: slots / 4 });
  }
  for (const batch of BATCHES) shapes.push({ tx: TX, rx: RX, size: 60, slots: 4096, batch });
  for (const size of [60, 1514]) {
    for (const slots of SLOTS) shapes.push({ tx: PIPE_TX, rx: PIPE_RX, size, slots, batch: slots / 4 });
  }
  const lab = await Lab.start();
  try {
    const rows: Row[] = [];
    for (const shape of shapes) {
      const { size, slots, batch } = shape;
      const through = shape.tx === TX ? 'VALE' : 'pipe';
      context.progress(`guests: ${through}, ${size} bytes, ${slots} slots, batch ${batch}`);
      const seen = await context.quiet.wait();
      const result = await stream(lab, shape, context.ms);
      rows.push({ bench: 'guests', through, size, slots, batch, ...result, ...conditions([seen]) });
    }
    return rows;
  } finally {
    await lab.stop();
  }
}

/** Two guests of a lab that send and receive. */
export interface RunningStream {
  readonly pids: readonly number[];
  /** What the daemon has counted so far, and when. */
  count(): Promise<Count>;
  /** Closes both ports. @throws Error if the receiver has not taken what the daemon counted */
  end(): Promise<void>;
}

/** Packets that left the sender's rings, and that came into the receiver's, after so many ms. */
export interface Count {
  readonly ms: number;
  readonly sent: number;
  readonly received: number;
}

/** Starts receiver and sender, and sends until code is compiled. */
export async function startStream(lab: Lab, s: Stream): Promise<RunningStream> {
  const pinned = s.cpu === undefined ? [] : ['-a', String(s.cpu)];
  const shape = ['-C', String(s.slots), ...pinned];
  const rx = lab.script(RECEIVER, [s.rx, String(s.slots), ...pinned.slice(1)]);
  const { mac } = await lab.running(s.rx);
  const rate = s.rate === undefined ? [] : ['-R', String(s.rate)];
  const packets = ['-l', String(s.size), '-b', String(s.batch), '-D', mac];
  const tx = lab.pktGen(['-i', s.tx, '-f', 'tx', ...packets, ...shape, ...rate]);
  await lab.running(s.tx);
  await setTimeout(WARM_MS);
  return {
    pids: [rx.pid, tx.pid],
    count: () => count(lab, s),
    end: async () => {
      tx.interrupt();
      await tx.result;
      await setTimeout(SETTLE_MS);
      const { received } = await count(lab, s);
      rx.interrupt();
      const { packets: taken } = await rx.result;
      if (taken !== received) throw new Error(`${s.rx} took ${taken} packets of ${received}`);
      await Promise.all([lab.closed(s.rx), lab.closed(s.tx)]);
    },
  };
}

/** What passed between two counts. */
export function streamed(before: Count, after: Count): StreamResult {
  const us = (after.ms - before.ms) * 1000;
  const [sentMpps, mpps] = [(after.sent - before.sent) / us, (after.received - before.received) / us];
  return { sentMpps, mpps, dropped: 1 - mpps / sentMpps };
}

/**
 * Sends until code is compiled, then for `ms` milliseconds, in which packets are counted; then closes both ports.
 * @param during called instead of waiting so long
 * @throws Error if the receiver has not taken what the daemon counted
 */
export async function stream(lab: Lab, s: Stream, ms: number, during?: () => Promise<void>): Promise<StreamResult> {
  const running = await startStream(lab, s);
  const before = await running.count();
  await (during === undefined ? setTimeout(ms) : during());
  const after = await running.count();
  await running.end();
  return streamed(before, after);
}

async function count(lab: Lab, { tx, rx }: Stream): Promise<Count> {
  const status = await lab.status();
  const ms = performance.now();
  const sum = (rings: readonly { packets: number }[] = []): number => rings.reduce((n, { packets }) => n + packets, 0);
  const received = sum(lab.port(status, rx)?.rxRings);
  // The sender is gone at the end; then only what was received counts.
  return { ms, sent: sum(lab.port(status, tx)?.txRings), received };
}
