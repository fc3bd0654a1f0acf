/** lb's statistics (-o, -s): netmap lb's JSON objects, one for each pipe and one for all. */
import type { Balancer, Output } from './balancer.ts';

/** What a pipe, or all of them, did so far. */
interface Sums {
  readonly packets: number;
  readonly bytes: number;
  readonly dropped: number;
  readonly droppedBytes: number;
}

const NOTHING: Sums = { packets: 0, bytes: 0, dropped: 0, droppedBytes: 0 };

/** Rates since the last report, by netmap's names. Mbps: millions of bits a second. */
function rates(now: Sums, before: Sums, seconds: number): Record<string, number> {
  const per = (key: keyof Sums, scale: number): number =>
    seconds > 0 ? Number((((now[key] - before[key]) * scale) / seconds).toFixed(4)) : 0;
  return {
    data_forward_rate_Mbps: per('bytes', 8e-6),
    data_drop_rate_Mbps: per('droppedBytes', 8e-6),
    packet_forward_rate_kpps: per('packets', 1e-3),
    packet_drop_rate_kpps: per('dropped', 1e-3),
  };
}

const sumsOf = ({ packets, bytes, dropped, droppedBytes }: Output): Sums => ({ packets, bytes, dropped, droppedBytes });
const sum = (a: Sums, b: Sums): Sums => ({
  packets: a.packets + b.packets,
  bytes: a.bytes + b.bytes,
  dropped: a.dropped + b.dropped,
  droppedBytes: a.droppedBytes + b.droppedBytes,
});

/** The statistics of one destination, with rates since its last report. */
export class Stats {
  readonly #port: string;
  readonly #balancer: Balancer;
  #at: number;
  #before: readonly Sums[];

  /** @param port the input's name @param now ms */
  constructor(port: string, balancer: Balancer, now: number) {
    this.#port = port;
    this.#balancer = balancer;
    this.#at = now;
    this.#before = [...balancer.groups.flat().map(() => NOTHING), NOTHING];
  }

  /** A report. @param now ms, on the clock of the one before */
  lines(now: number): Record<string, unknown>[] {
    const { groups, received, nonIp, freeBuffers } = this.#balancer;
    const ts = Date.now() / 1000;
    const seconds = (now - this.#at) / 1000;
    const outputs = groups.flat();
    const each = outputs.map(sumsOf);
    const sums = [...each, each.reduce(sum, NOTHING)];
    const common = sums.map((s, i) => ({
      packets_forwarded: s.packets,
      packets_dropped: s.dropped,
      ...rates(s, this.#before[i]!, seconds),
    }));
    this.#at = now;
    this.#before = sums;
    const lines: Record<string, unknown>[] = outputs.map((o, i) => ({
      ts,
      interface: o.name,
      output_ring: i,
      ...common[i],
      overflow_queue_size: o.queue.n,
    }));
    const all = { ts, interface: this.#port, output_ring: null, packets_received: received, ...common.at(-1) };
    return [...lines, { ...all, non_ip_packets: nonIp, free_buffer_slots: freeBuffers }];
  }
}
