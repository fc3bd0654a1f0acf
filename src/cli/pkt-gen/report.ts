/**
 * What pkt-gen prints: a line each report interval (stderr), the summary at the end (stdout), and our JSON. The texts are
 * netmap pkt-gen's, so that what reads those reads these. Counters belong to the loop that runs.
 */
import type { Job } from './options.ts';
import type { RttHistogram } from './rtt.ts';
import type { SequenceCheck, SequenceResult } from './sequence.ts';

/** Reports over which -A looks back. */
const RATE_WINDOW = 15;

/** Counted by a loop, once a batch. */
export class Counters {
  pkts = 0;
  bytes = 0;
  /** Batches that were not empty. */
  events = 0;
  /** Smallest room seen in the rx rings since the last report, slots. */
  minSpace = 0;
  /** Times of the first and the last batch, ms on performance.now's clock. */
  begin = 0;
  end = 0;
  /** rxseq only. */
  sequence: SequenceCheck | undefined;
}

/** `1234567` is "1.235 M": as pkt-gen writes numbers, before a unit. */
export function norm(value: number, normalize: boolean): string {
  if (!normalize) return `${value.toFixed(0)} `;
  const units = ['', 'K', 'M', 'G', 'T'];
  let v = value;
  let i = 0;
  while (v >= 1000 && i < units.length - 1) {
    v /= 1000;
    i++;
  }
  return `${v.toFixed(3)} ${units[i]}`;
}

/** pkt-gen's prefix of a message: seconds (modulo 1000) and microseconds, who says it, which of its reports. */
function stamp(who: string, n: number): string {
  const us = Math.floor((performance.timeOrigin + performance.now()) * 1000);
  const seconds = String(Math.floor(us / 1e6) % 1000).padStart(3, '0');
  return `${seconds}.${String(us % 1e6).padStart(6, '0')} ${who} [${String(n).padStart(4, '0')}]`;
}

/** -A: mean and standard deviation of the last rates that were not 0, as pkt-gen writes them. */
class RateWindow {
  readonly #rates: number[] = [];

  add(rate: number, normalize: boolean): string {
    if (rate > 0) this.#rates.push(rate);
    if (this.#rates.length > RATE_WINDOW) this.#rates.shift();
    const n = Math.max(1, this.#rates.length);
    const mean = this.#rates.reduce((sum, r) => sum + r, 0) / n;
    const deviation = Math.sqrt(this.#rates.reduce((sum, r) => sum + (r - mean) ** 2, 0) / n);
    return `[avg/std ${norm(mean, normalize)}/${norm(deviation, normalize)} pps]`;
  }
}

/** Prints a line per interval, from the difference of counters. */
export class IntervalReport {
  readonly #job: Job;
  readonly #print: (text: string) => void;
  #lines = 0;
  #at: number;
  #pkts = 0;
  #bytes = 0;
  #events = 0;
  readonly #window = new RateWindow();

  constructor(job: Job, print: (text: string) => void, now: number) {
    this.#job = job;
    this.#print = print;
    this.#at = now;
  }

  /** When the next line is due, ms. */
  get due(): number {
    return this.#at + this.#job.reportMs;
  }

  line(c: Counters, now: number): void {
    const { normalize, framingBits } = this.#job;
    const usec = Math.round((now - this.#at) * 1000);
    const pkts = c.pkts - this.#pkts;
    const bytes = c.bytes - this.#bytes;
    const events = c.events - this.#events;
    const pps = norm(Math.floor((pkts * 1e6) / usec), normalize);
    const bps = norm((1e6 * (bytes * 8 + pkts * framingBits)) / usec, normalize);
    const batch = (events > 0 ? pkts / events : 0).toFixed(2);
    this.#lines += 1;
    const stats = this.#job.rateStats ? this.#window.add((pkts * 1e6) / usec, normalize) : '';
    this.#print(
      `${stamp('main_thread', this.#lines)} ${pps}pps ${stats}(${norm(pkts, normalize)}pkts ${bps}bps in ${usec} usec) ` +
        `${batch} avg_batch ${c.minSpace} min_space\n`,
    );
    this.#at = now;
    this.#pkts = c.pkts;
    this.#bytes = c.bytes;
    this.#events = c.events;
  }

  /** ping's line: count, minimum, average, and how many round trips took 2^k .. 2^(k+1) - 1 ns. */
  rttLine(rtt: RttHistogram): void {
    if (rtt.count === 0) return;
    const { first, counts } = rtt.powers();
    const last = first + counts.length - 1;
    this.#print(
      `${stamp('ping_body', this.#lines)} count ${rtt.count} RTT: min ${rtt.min} av ${Math.round(rtt.mean)} ns\n` +
        `${stamp('ping_body', this.#lines)} k: ${2 ** first} .. ${2 ** last}\n` +
        `\t${counts.map((n) => ` ${String(n).padStart(5)}`).join('')}\n`,
    );
  }
}

/** What `--json` prints at the end. */
export interface PktGenResult {
  readonly function: Job['func'];
  readonly port: string;
  readonly mac: string;
  readonly seconds: number;
  readonly packets: number;
  readonly bytes: number;
  readonly events: number;
  readonly packetsPerSecond: number;
  readonly bitsPerSecond: number;
  readonly averageBatch: number;
  /** ping only: round trips, nanoseconds. */
  readonly rtt?: RttResult;
  /** rxseq only. */
  readonly sequence?: SequenceResult;
}

/** How a run ended. */
export interface Outcome {
  /** What was counted; nothing to tell if the run failed before anything was. */
  readonly result?: PktGenResult;
  /** Why it ended early: the port is gone, mostly. */
  readonly error?: unknown;
}

export interface RttResult {
  readonly sent: number;
  readonly received: number;
  readonly minNs: number;
  readonly meanNs: number;
  readonly p50Ns: number;
  readonly p99Ns: number;
  readonly p999Ns: number;
  readonly maxNs: number;
}

export function makeResult(job: Job, mac: string, c: Counters, rtt?: RttHistogram): PktGenResult {
  const seconds = Math.max(0, (c.end - c.begin) / 1000);
  const per = (n: number): number => (seconds > 0 ? n / seconds : 0);
  return {
    function: job.func,
    port: job.port,
    mac,
    seconds,
    packets: c.pkts,
    bytes: c.bytes,
    events: c.events,
    packetsPerSecond: per(c.pkts),
    bitsPerSecond: per(8 * c.bytes),
    averageBatch: c.events > 0 ? c.pkts / c.events : 0,
    ...(rtt === undefined ? {} : { rtt: rttResult(c, rtt) }),
    ...(c.sequence === undefined ? {} : { sequence: c.sequence.result }),
  };
}

function rttResult(c: Counters, rtt: RttHistogram): RttResult {
  return {
    sent: c.pkts,
    received: rtt.count,
    minNs: rtt.min,
    meanNs: rtt.mean,
    p50Ns: rtt.percentile(50),
    p99Ns: rtt.percentile(99),
    p999Ns: rtt.percentile(99.9),
    maxNs: rtt.max,
  };
}

/** The summary at the end, as pkt-gen prints it. */
export function summary(job: Job, result: PktGenResult): string {
  const { packets, bytes, events, seconds, rtt } = result;
  if (rtt !== undefined) {
    if (rtt.received === 0) return `RTT: ${rtt.sent} packets sent, nothing received.\n`;
    const lost = rtt.sent - rtt.received;
    return (
      `RTT over ${rtt.received} packets: min ${rtt.minNs} av ${Math.round(rtt.meanNs)} ns\n` +
      `RTT p50 ${rtt.p50Ns} p99 ${rtt.p99Ns} max ${rtt.maxNs} ns, ${rtt.sent} sent, ${lost} lost\n`
    );
  }
  const verb = job.func.startsWith('rx') ? 'Received' : job.func.startsWith('tx') ? 'Sent' : 'Answered';
  if (packets === 0) return `${verb} nothing.\n`;
  const size = Math.floor(bytes / packets);
  const raw = seconds > 0 ? (8 * bytes + packets * job.framingBits) / seconds : 0;
  const n = (value: number): string => norm(value, job.normalize);
  return (
    `${verb} ${packets} packets ${bytes} bytes ${events} events ${size} bytes each in ${seconds.toFixed(2)} seconds.\n` +
    `Speed: ${n(result.packetsPerSecond)}pps Bandwidth: ${n(result.bitsPerSecond)}bps (raw ${n(raw)}bps). ` +
    `Average batch: ${result.averageBatch.toFixed(2)} pkts\n${sequenceText(result)}`
  );
}

function sequenceText({ sequence }: PktGenResult): string {
  if (sequence === undefined) return '';
  const { gaps, lost, outOfOrder, others } = sequence;
  const without = others > 0 ? `, ${others} packets without a number` : '';
  return `Sequence: ${lost} lost in ${gaps} gaps, ${outOfOrder} out of order${without}\n`;
}
