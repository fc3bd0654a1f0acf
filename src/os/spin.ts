/**
 * How long a thread that waits for another one looks again before it sleeps. A sleep costs both sides tens of µs, so where
 * what it waits for comes within that time, it spins; the time adapts to what happened last. Between two looks it gives its CPU
 * away: who is to bring what it waits for may be waiting for this very CPU. With a short time slice it soon has it back,
 * also from somebody who computes; where Linux has no such slices it does without yielding.
 */
import { shortTimeSlice, yieldCpu } from './process.ts';

/** Bounds of the time, µs, the upper one for who yields. */
const MIN_US = 4;
const MAX_US = 128;

export class Spin {
  readonly #alone: number;
  readonly #prepare: () => boolean;
  #us: number;
  /** Whether this thread yields; found out when it spins for the first time. */
  #yields: boolean | undefined;

  /**
   * @param alone most µs to spin without yielding
   * @param prepare prepares the calling thread for yielding; whether it is to do so
   */
  constructor(alone: number, prepare = shortTimeSlice) {
    this.#alone = alone;
    this.#prepare = prepare;
    this.#us = Math.min(MIN_US, alone);
  }

  /** How long to spin now, µs. */
  get us(): number {
    return this.#us;
  }

  /** Something came while it was spinning. */
  paid(): void {
    this.#yields ??= this.#prepare();
    this.#us = Math.min(this.#yields ? MAX_US : this.#alone, Math.max(MIN_US, this.#us * 2));
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

  /** To be called between two looks. */
  pause(): void {
    if (this.#yields === true && this.#us > MIN_US) yieldCpu();
  }

  /** Spins until `look(arg)` says yes, at most until `end` (performance.now()). Returns whether it did. */
  until(look: (arg: number) => boolean, arg: number, end: number): boolean {
    const begin = performance.now();
    for (let now = begin; now < end && (now - begin) * 1000 < this.#us; now = performance.now()) {
      this.pause();
      if (!look(arg)) continue;
      this.paid();
      return true;
    }
    this.inVain();
    return false;
  }
}
