/** Numbers on command lines. */
import { UsageError } from './errors.ts';

/** A whole number from `min` to `max`. @param option for the error, e.g. "-n" */
export function whole(option: string, text: string, min: number, max: number): number {
  const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (value >= min && value <= max) return value;
  throw new UsageError(`${option} ${text}: must be a whole number from ${min} to ${max}`);
}

/** A decimal number with one of the given units behind it, multiplied by the unit's value; NaN if it is none. */
export function withUnit(text: string, units: Readonly<Record<string, number>>): number {
  const match = /^(\d+(?:\.\d*)?(?:e[-+]?\d+)?|\.\d+)([a-z]*)$/i.exec(text);
  if (match === null) return Number.NaN;
  return Number(match[1]) * (units[match[2]!] ?? Number.NaN);
}
