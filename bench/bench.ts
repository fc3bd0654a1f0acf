/** What the benches share: rows, the circumstances a row was measured in, and interleaving. */
import type { Conditions, Quiet } from './quiet.ts';
import { median } from './quiet.ts';

/**
 * How long packets flow before they are counted, ms. Processes of JavaScript and WebAssembly begin slowly: while half a dozen
 * threads compile, for 0.3 to 0.5 s on two CPUs, a stream has a third of its rate.
 */
export const WARM_MS = 1000;

/** A row of results: which bench, its parameters and figures. */
export interface Row {
  readonly bench: string;
  readonly [key: string]: string | number | boolean | readonly number[] | undefined;
}

/** What a bench gets. */
export interface Context {
  readonly quiet: Quiet;
  /** How long a figure is measured, ms. */
  readonly ms: number;
  /** How often each variant is measured; the median is the figure. */
  readonly rounds: number;
  /** Which of a bench's figures are wanted, by what they are called; peers, nic and slices only. */
  readonly only: RegExp;
  /** Says what is being measured. */
  readonly progress: (text: string) => void;
}

/** Something that gives one figure, the larger the better or not. */
export interface Variant {
  readonly name: string;
  run(): number | Promise<number>;
}

export interface Figure {
  readonly name: string;
  /** Median of the rounds. */
  readonly value: number;
  /** Of each round, in order; NaN where it failed. */
  readonly rounds: readonly number[];
  readonly conditions: readonly Conditions[];
  /** Why it has no value. */
  readonly error?: string;
}

/** The circumstances of a row, as its last columns. */
export function conditions(seen: readonly Conditions[]): { probeNs: number; othersCpus: number } {
  return {
    probeNs: Math.round(median(seen.map((c) => c.probeNs))),
    othersCpus: Number(median(seen.map((c) => c.othersCpus)).toFixed(2)),
  };
}

/** Measures all variants in turn, `rounds` times, so that what changes with time changes for all of them. */
export async function interleave(context: Context, variants: readonly Variant[]): Promise<Figure[]> {
  const rounds = variants.map(() => [] as number[]);
  const seen = variants.map(() => [] as Conditions[]);
  const errors: (string | undefined)[] = variants.map(() => undefined);
  for (let r = 0; r < context.rounds; r++) {
    for (const [i, variant] of variants.entries()) {
      if (errors[i] !== undefined) continue;
      context.progress(`round ${r + 1} of ${context.rounds}: ${variant.name}`);
      seen[i]!.push(await context.quiet.wait());
      try {
        rounds[i]!.push(await variant.run());
      } catch (e) {
        errors[i] = e instanceof Error ? e.message : String(e);
      }
    }
  }
  return variants.map((variant, i) => ({
    name: variant.name,
    value: median(rounds[i]!),
    rounds: rounds[i]!,
    conditions: seen[i]!,
    ...(errors[i] === undefined ? {} : { error: errors[i] }),
  }));
}

/** Median over the rounds of a's figure by b's of the same round; NaN if one of them has none. */
export function ratio(a: Figure | undefined, b: Figure | undefined): number {
  if (a === undefined || b === undefined) return Number.NaN;
  const n = Math.min(a.rounds.length, b.rounds.length);
  return median(a.rounds.slice(0, n).map((v, i) => v / b.rounds[i]!));
}
