/**
 * Giving way to a receiver whose ring is full. It may be waiting for the very CPU that a datapath thread fills its ring on,
 * while a sender on another one keeps that thread busy: then the thread yields. What that costs everybody else on the
 * thread is bounded, whatever receivers do (docs/datapath.md, giving way).
 */
import { shortTimeSlice, yieldCpu } from '../os/index.ts';

/** No yield follows another one for so many times as long as that took: yields take a fifth of the time at most. */
const REST = 4;
/** Nor for so many µs, the lower one where it helped, up to the upper one where it did not. */
const REST_MIN_US = 20;
const REST_MAX_US = 10_000;

export class Courtesy {
  readonly #prepare: () => boolean;
  readonly #yield: () => void;
  /** Whether this thread yields; found out when it would for the first time. */
  #yields: boolean | undefined;
  #vainUs = REST_MIN_US;
  #restUntil = 0;

  /** @param prepare prepares the calling thread for yielding; whether it is to do so @param yieldTo yields */
  constructor(prepare = shortTimeSlice, yieldTo = yieldCpu) {
    this.#prepare = prepare;
    this.#yield = yieldTo;
  }

  /** To be called when a ring had no room. @param taken whether its user has given slots back since it was looked at */
  giveWay(kring: number, taken: (kring: number) => boolean): void {
    const begin = performance.now() * 1000;
    if (begin < this.#restUntil) return;
    this.#yields ??= this.#prepare();
    if (!this.#yields) return;
    this.#yield();
    const end = performance.now() * 1000;
    this.#vainUs = taken(kring) ? REST_MIN_US : Math.min(this.#vainUs * 2, REST_MAX_US);
    this.#restUntil = end + Math.max(this.#vainUs, (end - begin) * REST);
  }
}
