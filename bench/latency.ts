/**
 * Round trips between two guest processes through a VALE switch: at rest (everyone is asleep when a ping is sent), back
 * to back, and under load (two more guests send and receive as fast as they can on the same switch).
 */
import { Lab } from '../src/cli/lab.ts';
import type { Context, Row } from './bench.ts';
import { conditions } from './bench.ts';
import { RX, stream, TX } from './guests.ts';

const PING = 'vale0:ping';
const PONG = 'vale0:pong';
/** Pings a second at rest: long pauses for a machine that sleeps after 20 µs. */
export const REST_RATE = 200;

export async function benchLatency(context: Context): Promise<Row[]> {
  const { quiet, ms, progress } = context;
  const lab = await Lab.start();
  try {
    const rows: Row[] = [];
    const measure = async (what: string, args: readonly string[], shape: object = {}): Promise<void> => {
      progress(`latency: ${what}`);
      const seen = await quiet.wait();
      const row = async (): Promise<void> => {
        rows.push({ bench: 'latency', what, ...shape, ...(await roundTrips(lab, args, ms)), ...conditions([seen]) });
      };
      if (what !== 'under load') return row();
      await stream(lab, { tx: TX, rx: RX, size: 60, slots: 1024, batch: 256 }, ms, row);
    };
    await measure('at rest', ['-R', String(REST_RATE)]);
    await measure('back to back', []);
    await measure('under load', []);
    return rows;
  } finally {
    await lab.stop();
  }
}

/** Percentiles of round trips, µs. @param args further options of ping */
export async function roundTrips(
  lab: Lab,
  args: readonly string[],
  ms: number,
): Promise<{ roundTrips: number; p50Us: number; p99Us: number; p999Us: number }> {
  const pong = lab.pktGen(['-i', PONG, '-f', 'pong']);
  const { mac } = await lab.running(PONG);
  const ping = lab.pktGen(['-i', PING, '-f', 'ping', '-l', '60', '-D', mac, ...args]);
  await lab.running(PING);
  const timer = setTimeout(() => ping.interrupt(), ms);
  const { rtt } = await ping.result;
  clearTimeout(timer);
  pong.interrupt();
  await pong.result;
  await Promise.all([lab.closed(PING), lab.closed(PONG)]);
  if (rtt === undefined) throw new Error('ping reported no round trips');
  return {
    roundTrips: rtt.received,
    p50Us: rtt.p50Ns / 1000,
    p99Us: rtt.p99Ns / 1000,
    p999Us: rtt.p999Ns / 1000,
  };
}
