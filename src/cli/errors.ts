/** The one way a command fails: a line on stderr and an exit status (1, or 2 for a wrong command line). */

import type { ConfigError } from '../host/config.ts';

/** The command line is wrong. */
export class UsageError extends Error {
  constructor(message: string) {
    super(message);
    this.name = 'UsageError';
  }
}

/** Exit status of a wrong command line. */
export const EXIT_USAGE = 2;

/**
 * What is printed for an error: a line (one for each fault of a configuration; the marks under a wrong port name follow
 * theirs), its stack only if asked for.
 */
export function errorText(error: unknown, debug: boolean): string {
  if (!(error instanceof Error)) return `ptnet: ${String(error)}\n`;
  if (debug) return `ptnet: ${error.stack ?? error.message}\n`;
  if (error.name === 'ConfigError') return (error as ConfigError).faults.map((fault) => `ptnet: ${fault}\n`).join('');
  const [line, ...more] = error.message.split('\n');
  const marks = more.filter((text) => text.startsWith('  ')).map((text) => text.replace(/\^: [A-Z]+$/, '^'));
  return `${[`ptnet: ${line}`, ...marks].join('\n')}\n`;
}
