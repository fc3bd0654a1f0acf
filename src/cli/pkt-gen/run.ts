/**
 * The run of a pkt-gen function: the part of a port it uses, when it must end, and the pauses in which the thread looks
 * at signals and prints reports. The loops block in poll(2), so signal handlers run only in `breathe`.
 */
import { setImmediate, setTimeout } from 'node:timers/promises';
import type { NetmapPort, NetmapRing } from '../../api/index.ts';
import type { Job } from './options.ts';
import { Counters, IntervalReport } from './report.ts';
import type { RttHistogram } from './rtt.ts';

/** What a loop uses of a ring. */
export type PktRing = Pick<
  NetmapRing,
  | 'numSlots'
  | 'ringId'
  | 'head'
  | 'cur'
  | 'tail'
  | 'space'
  | 'next'
  | 'bufIdx'
  | 'setBufIdx'
  | 'len'
  | 'setLen'
  | 'flags'
  | 'setFlags'
  | 'bufOfs'
  | 'slotOfs'
>;

/** What a loop uses of a port. */
export interface PktPort extends Pick<NetmapPort, 'm' | 'mac' | 'bufSize' | 'poll' | 'txsync'> {
  readonly txRings: readonly PktRing[];
  readonly rxRings: readonly PktRing[];
}

/** Longest time without a look at signals: while there is work, and while waiting in poll(2). */
const BREATH_MS = 10;
const POLL_MS = 100;

export class Run {
  readonly job: Job;
  readonly counters = new Counters();
  /** Set by a signal: the loop ends at its next look. */
  cancelled = false;
  /** Prints a line that is not the result. */
  readonly log: (text: string) => void;
  readonly #report: IntervalReport;
  #breathAt = 0;

  /** @param log prints the lines of each interval */
  constructor(job: Job, log: (text: string) => void) {
    this.job = job;
    this.log = log;
    this.#report = new IntervalReport(job, log, performance.now());
  }

  /** Whether `done` of the count asked for, or a signal, ends the loop. */
  over(done: number): boolean {
    return this.cancelled || (this.job.count > 0 && done >= this.job.count);
  }

  /** Whether it is time to breathe. */
  due(now: number): boolean {
    return now >= this.#breathAt;
  }

  /** Milliseconds that poll(2) may take: until the next report, at most POLL_MS. */
  pollTimeout(now: number): number {
    return Math.max(1, Math.min(POLL_MS, Math.ceil(this.#report.due - now)));
  }

  /** Lets signals in, and prints what is due. @param rtt round trips since the last report, if the function has any */
  async breathe(now: number, rtt?: RttHistogram): Promise<void> {
    await setImmediate();
    this.#breathAt = now + BREATH_MS;
    if (now < this.#report.due) return;
    if (rtt !== undefined) this.#report.rttLine(rtt);
    this.#report.line(this.counters, now);
    // As pkt-gen: the receiver lowers it.
    this.counters.minSpace = this.job.func.startsWith('rx') ? 99999 : 0;
  }

  /** Whether the next breath prints a report. */
  reportDue(now: number): boolean {
    return now >= this.#report.due;
  }

  /** Waits until a time on performance.now's clock: asleep, and awake for the last millisecond, for precision. */
  async until(time: number): Promise<void> {
    for (;;) {
      const now = performance.now();
      if (now >= time || this.cancelled) return;
      if (this.due(now)) await this.breathe(now);
      if (time - now > 1.5) await setTimeout(Math.min(time - now - 1, POLL_MS));
    }
  }
}

/** Buffer contents of a slot as a hex dump, for -X; the first line is pkt-gen's. */
export function dumpSlot(port: PktPort, ring: PktRing, i: number): string {
  const len = ring.len(i);
  const flags = ring.flags(i).toString(16).padStart(4, '0');
  const at = ring.bufOfs(i);
  let text = `ring ${ring.ringId} cur ${String(i).padStart(5)} [buf ${String(ring.bufIdx(i)).padStart(6)} flags 0x${flags} len ${String(len).padStart(5)}]\n`;
  for (let row = 0; row < Math.min(len, port.bufSize); row += 16) {
    const bytes = Array.from(port.m.u8.subarray(at + row, at + Math.min(row + 16, len, port.bufSize)));
    const hex = bytes.map((b) => b.toString(16).padStart(2, '0')).join(' ');
    const chars = bytes.map((b) => (b >= 32 && b < 127 ? String.fromCharCode(b) : '.')).join('');
    text += `${String(row).padStart(5)}: ${hex.padEnd(48)} ${chars}\n`;
  }
  return text;
}
