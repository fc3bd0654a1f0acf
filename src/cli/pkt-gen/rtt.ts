/**
 * Round-trip times in a histogram: 32 steps to each power of two, so a percentile is at most 3 % too high; adding one
 * allocates nothing. Times are nanoseconds.
 */

const STEP_BITS = 5;
const STEPS = 2 ** STEP_BITS;
/** Powers of two covered: up to 2^40 ns, 18 minutes. */
const POWERS = 40;

export class RttHistogram {
  readonly #counts = new Float64Array(POWERS * STEPS);
  count = 0;
  min = Number.POSITIVE_INFINITY;
  max = 0;
  #sum = 0;

  add(ns: number): void {
    const t = Math.max(0, Math.round(ns));
    this.count += 1;
    this.#sum += t;
    if (t < this.min) this.min = t;
    if (t > this.max) this.max = t;
    const bucket = bucketOf(t);
    this.#counts[bucket] = this.#counts[bucket]! + 1;
  }

  merge(other: RttHistogram): void {
    this.count += other.count;
    this.#sum += other.#sum;
    this.min = Math.min(this.min, other.min);
    this.max = Math.max(this.max, other.max);
    for (let i = 0; i < this.#counts.length; i++) this.#counts[i]! += other.#counts[i]!;
  }

  reset(): void {
    this.count = 0;
    this.#sum = 0;
    this.min = Number.POSITIVE_INFINITY;
    this.max = 0;
    this.#counts.fill(0);
  }

  get mean(): number {
    return this.count === 0 ? 0 : this.#sum / this.count;
  }

  /** The time that p percent were not longer than; 0 if there is none. */
  percentile(p: number): number {
    const rank = Math.ceil((this.count * p) / 100);
    let below = 0;
    for (let i = 0; i < this.#counts.length; i++) {
      below += this.#counts[i]!;
      if (below >= rank && below > 0) return Math.min(this.max, upperEnd(i));
    }
    return 0;
  }

  /** Counts by power of two, from the first that is not 0 to the last: pkt-gen's line. */
  powers(): { first: number; counts: number[] } {
    const counts = Array.from({ length: POWERS }, () => 0);
    for (let i = 0; i < this.#counts.length; i++) {
      const n = this.#counts[i]!;
      if (n > 0) counts[Math.floor(Math.log2(Math.max(1, upperEnd(i))))]! += n;
    }
    const first = counts.findIndex((n) => n > 0);
    return {
      first: Math.max(0, first),
      counts: counts.slice(Math.max(0, first), counts.findLastIndex((n) => n > 0) + 1),
    };
  }
}

/** Times below STEPS have a bucket each; above, the highest set bit and the STEP_BITS after it. */
function bucketOf(t: number): number {
  if (t < STEPS) return t;
  const power = Math.floor(Math.log2(t));
  const step = Math.floor(t / 2 ** (power - STEP_BITS)) - STEPS;
  return Math.min((power - STEP_BITS + 1) * STEPS + step, POWERS * STEPS - 1);
}

/** Longest time of a bucket. */
function upperEnd(bucket: number): number {
  if (bucket < STEPS) return bucket;
  const power = Math.floor(bucket / STEPS) + STEP_BITS - 1;
  return (STEPS + (bucket % STEPS) + 1) * 2 ** (power - STEP_BITS) - 1;
}
