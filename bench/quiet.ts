/**
 * Whether the machine is quiet. Figures that cross cores come in two modes on shared machines, so before each measurement
 * the round trip of a cache line between two cores is probed (about 250 ns when quiet, over 700 when not) and how much
 * CPU others use; both are printed beside the figure. Waiting for quiet has a bound, for the whole run.
 */
import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { setTimeout } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';

/** Words of the memory shared with the worker; PING and PONG have cache lines of their own. */
export const WORD = { STATE: 0, READY: 1, PING: 32, PONG: 64, LENGTH: 96 } as const;

/** What the machine was like just before a measurement. */
export interface Conditions {
  /** Median round trip between two cores, ns; NaN on a machine with one. */
  readonly probeNs: number;
  /** CPUs that others kept busy. */
  readonly othersCpus: number;
}

const QUIET_PROBE_NS = 400;
const QUIET_CPUS = 0.15;
/** Round trips of a sample; samples of a probe, at most, and for how long. */
const TRIPS = 200;
const SAMPLES = 40;
const PROBE_MS = 100;
/** How long others' use of the CPUs is looked at, ms. */
const LOOK_MS = 50;

export class Quiet {
  readonly #shared = new Int32Array(new SharedArrayBuffer(4 * WORD.LENGTH));
  readonly #worker: Worker | undefined;
  #budgetMs: number;
  #ball = 0;

  /** @param budgetMs how long may be waited for quiet, in all */
  constructor(budgetMs: number) {
    this.#budgetMs = budgetMs;
    if (availableParallelism() < 2) return;
    this.#worker = new Worker(new URL('probe-worker.js', import.meta.url), { workerData: this.#shared });
    this.#worker.unref();
  }

  /** Waits until the machine is quiet or the budget is used up. */
  async wait(): Promise<Conditions> {
    for (;;) {
      const before = performance.now();
      const othersCpus = await busyCpus();
      const probeNs = await this.#probe();
      const quiet = !(probeNs > QUIET_PROBE_NS) && othersCpus < QUIET_CPUS;
      if (quiet || this.#budgetMs <= 0) return { probeNs, othersCpus };
      await setTimeout(100);
      this.#budgetMs -= performance.now() - before;
    }
  }

  close(): void {
    Atomics.store(this.#shared, WORD.STATE, -1);
    Atomics.notify(this.#shared, WORD.STATE);
  }

  async #probe(): Promise<number> {
    if (this.#worker === undefined) return Number.NaN;
    const shared = this.#shared;
    Atomics.store(shared, WORD.STATE, 1);
    Atomics.notify(shared, WORD.STATE);
    while (Atomics.load(shared, WORD.READY) === 0) await setTimeout(1);
    const samples: number[] = [];
    const end = performance.now() + PROBE_MS;
    while (samples.length < SAMPLES && performance.now() < end) {
      const start = process.hrtime.bigint();
      for (let i = 0; i < TRIPS; i++) {
        this.#ball = (this.#ball + 1) | 0;
        Atomics.store(shared, WORD.PING, this.#ball);
        while (Atomics.load(shared, WORD.PONG) !== this.#ball);
      }
      samples.push(Number(process.hrtime.bigint() - start) / TRIPS);
    }
    Atomics.store(shared, WORD.STATE, 0);
    while (Atomics.load(shared, WORD.READY) !== 0) await setTimeout(1);
    return median(samples);
  }
}

/** CPUs in use while this process sleeps. */
async function busyCpus(): Promise<number> {
  const read = (): { busy: number; all: number } => {
    const fields = readFileSync('/proc/stat', 'utf8').split('\n')[0]!.trim().split(/\s+/).slice(1, 9).map(Number);
    const all = fields.reduce((a, b) => a + b, 0);
    return { busy: all - fields[3]! - fields[4]!, all };
  };
  const before = read();
  await setTimeout(LOOK_MS);
  const after = read();
  const all = after.all - before.all;
  return all === 0 ? 0 : ((after.busy - before.busy) / all) * availableParallelism();
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >>> 1;
  if (sorted.length === 0) return Number.NaN;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}
