/** Errors of system calls: what was attempted, on what, and why it failed. */
import { constants } from 'node:os';
import { getSystemErrorName } from 'node:util';

/** Errno numbers by name (Linux). */
export const errno = constants.errno;

/** A failed system call. `message`: "<attempt>: <strerror-like text> (<CODE>)". */
export class SysError extends Error {
  /** The message without the errno. */
  readonly attempt: string;
  /** Positive errno. */
  readonly errno: number;
  /** Name of the errno, e.g. "ENOENT". */
  readonly code: string;
  constructor(attempt: string, errnoValue: number) {
    const code = errnoName(errnoValue);
    super(`${attempt}: ${code}`);
    this.name = 'SysError';
    this.attempt = attempt;
    this.errno = errnoValue;
    this.code = code;
  }
}

/** Name of a positive errno, e.g. 2 is "ENOENT"; unknown values are given as "errno N". */
export function errnoName(value: number): string {
  // libuv's names first: it knows which of two names of a number is used; but it does not know all numbers.
  const name = value > 0 ? getSystemErrorName(-value) : '';
  if (/^E[A-Z0-9]+$/.test(name)) return name;
  return Object.entries(errno).find(([, n]) => n === value)?.[0] ?? `errno ${value}`;
}
