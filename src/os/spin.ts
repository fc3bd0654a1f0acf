/**
 * How long a thread that waits for another one looks again before it sleeps. A sleep costs both sides tens of µs, so where
 * what it waits for comes within that time, it spins; the time adapts to what happened last. Between two looks it gives its CPU
 * away: who is to bring what it waits for may be waiting for this very CPU. Where somebody else takes the CPU instead, a
 * thread that sleeps and is woken is better off than one that yields: then it does without, for a while.
 */
import { yieldCpu } from './process.ts';

/** Bounds of the time, µs, the upper one where yielding does no harm. */
const MIN_US = 4;
const MAX_US = 128;
/** A yield that took longer than this, µs, went to somebody who computes; how long to do without then, ms. */
const LONG_YIELD_US = 400;
const NO_YIELD_MS = 2000;

export class Spin {
  /** Most µs to spin without yielding. */
  readonly #alone: number;
  #us: number;
  /** Before this time (performance.now()) it does not yield. */
  #yieldsFrom = 0;

  /** @param alone most µs to spin while it does without yielding */
  constructor(alone: number) {
    this.#alone = alone;
    this.#us = Math.min(MIN_US, alone);
  }

  /** How long to spin now, µs. */
  get us(): number {
    return this.#us;
  }

  /** Something came while it was spinning. */
  paid(): void {
    const most = performance.now() < this.#yieldsFrom ? this.#alone : MAX_US;
    this.#us = Math.min(most, Math.max(MIN_US, this.#us * 2));
  }

  /** Nothing came. */
  inVain(): void {
    this.#us = Math.max(Math.min(MIN_US, this.#alone), this.#us / 2);
  }

  /** It slept, for so many µs: not much longer than a spin, which would have been better. */
  slept(us: number): void {
    if (us > 0 && us < MAX_US) {
      this.paid();
      this.paid();
    }
  }

  /** To be called between two looks. @param now performance.now() */
  pause(now: number): void {
    if (this.#us <= MIN_US || now < this.#yieldsFrom) return;
    yieldCpu();
    const then = performance.now();
    if ((then - now) * 1000 <= LONG_YIELD_US) return;
    this.#yieldsFrom = then + NO_YIELD_MS;
    this.#us = Math.min(this.#us, this.#alone);
  }

  /** Spins until `look(arg)` says yes, at most until `end` (performance.now()). Returns whether it did. */
  until(look: (arg: number) => boolean, arg: number, end: number): boolean {
    const begin = performance.now();
    for (let now = begin; now < end && (now - begin) * 1000 < this.#us; now = performance.now()) {
      this.pause(now);
      if (!look(arg)) continue;
      this.paid();
      return true;
    }
    this.inVain();
    return false;
  }
}
