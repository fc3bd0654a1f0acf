/**
 * Two guest processes through the daemon: pkt-gen tx to pkt-gen rx over one VALE switch, then ping-pong. What a user of
 * the whole system gets, receiver's drops included.
 */
import { setTimeout } from 'node:timers/promises';
import { Lab } from '../src/cli/lab.ts';

export interface GuestsRow {
  readonly bench: 'guests';
  /** Bytes of a packet. */
  readonly size: number;
  /** Slots of each ring of both ports. */
  readonly slots: number;
  /** Packets that the sender hands over at a time. */
  readonly batch: number;
  /** Millions of packets a second, as the sender and the receiver counted them. */
  readonly sentMpps: number;
  readonly mpps: number;
  /** Part of the packets that were dropped because the receiver's ring was full, 0 to 1. */
  readonly dropped: number;
}

export interface PingRow {
  readonly bench: 'ping';
  readonly size: number;
  readonly roundTrips: number;
  readonly p50Us: number;
  readonly p99Us: number;
}

const SIZES = [60, 512, 1514];
const SLOTS = [1024, 4096];
const BATCHES = [1, 16, 256, 1024];
/** How long the receiver gets to take what is still in its ring. */
const SETTLE_MS = 200;
const TX = 'vale0:tx';
const RX = 'vale0:rx';

/** @param ms how long packets are sent for each row */
export async function benchGuests(ms = 1000): Promise<(GuestsRow | PingRow)[]> {
  const lab = await Lab.start();
  try {
    const rows: (GuestsRow | PingRow)[] = [];
    for (const size of SIZES) {
      for (const slots of SLOTS) for (const batch of BATCHES) rows.push(await stream(lab, size, slots, batch, ms));
    }
    rows.push(await ping(lab, 60));
    return rows;
  } finally {
    await lab.stop();
  }
}

async function stream(lab: Lab, size: number, slots: number, batch: number, ms: number): Promise<GuestsRow> {
  const shape = ['-C', String(slots)];
  const rx = lab.pktGen(['-i', RX, '-f', 'rx', '-b', String(slots), ...shape]);
  const { mac } = await lab.running(RX);
  const tx = lab.pktGen(['-i', TX, '-f', 'tx', '-l', String(size), '-b', String(batch), '-D', mac, ...shape]);
  await lab.running(TX);
  await setTimeout(ms);
  tx.interrupt();
  const sent = await tx.result;
  await setTimeout(SETTLE_MS);
  rx.interrupt();
  const received = await rx.result;
  await Promise.all([lab.closed(RX), lab.closed(TX)]);
  return {
    bench: 'guests',
    size,
    slots,
    batch,
    sentMpps: sent.packetsPerSecond / 1e6,
    mpps: received.packetsPerSecond / 1e6,
    dropped: 1 - received.packets / sent.packets,
  };
}

async function ping(lab: Lab, size: number): Promise<PingRow> {
  const pong = lab.pktGen(['-i', RX, '-f', 'pong']);
  const { mac } = await lab.running(RX);
  const { rtt } = await lab.pktGen(['-i', TX, '-f', 'ping', '-n', '20000', '-l', String(size), '-D', mac]).result;
  pong.interrupt();
  await pong.result;
  if (rtt === undefined) throw new Error('ping reported no round trips');
  return { bench: 'ping', size, roundTrips: rtt.received, p50Us: rtt.p50Ns / 1000, p99Us: rtt.p99Ns / 1000 };
}
