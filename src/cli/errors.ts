/** The one way a command fails: a line on stderr and an exit status (1, or 2 for a wrong command line or configuration). */

import type { ConfigError } from '../host/config.ts';
import { PortNameError } from '../ports/names.ts';

/** The command line is wrong. */
export class UsageError extends Error {
  constructor(message: string) {
    super(message);
    this.name = 'UsageError';
  }
}

/** Exit status of a wrong command line or configuration. */
export const EXIT_USAGE = 2;

/** The exit status for an error. */
export const exitStatus = (error: unknown): number =>
  error instanceof UsageError || error instanceof PortNameError || isConfigError(error) ? EXIT_USAGE : 1;

/** (The class itself is loaded by `ptnet host` only.) */
const isConfigError = (error: unknown): error is ConfigError => error instanceof Error && error.name === 'ConfigError';

/** "x.pcap: no such file or directory: ENOENT", for what Node says of a file. */
export function systemText(message: string): string {
  const parts = /^([A-Z][A-Z0-9]+): (.*), \w+(?: '(.*)')?$/.exec(message);
  if (parts === null) return message;
  const [, code, text, path] = parts;
  return `${path === undefined ? '' : `${path}: `}${text}: ${code}`;
}

/**
 * What is printed for an error: a line (one for each fault of a configuration; the marks under a wrong port name follow
 * theirs), its stack only if asked for.
 */
export function errorText(error: unknown, debug: boolean): string {
  if (!(error instanceof Error)) return `ptnet: ${String(error)}\n`;
  if (debug) return `ptnet: ${error.stack ?? error.message}\n`;
  if (isConfigError(error)) return error.faults.map((fault) => `ptnet: ${fault}\n`).join('');
  const [line, ...more] = error.message.split('\n');
  const marks = more.filter((text) => text.startsWith('  ')).map((text) => text.replace(/\^: [A-Z]+$/, '^'));
  return `${[`ptnet: ${systemText(line ?? '')}`, ...marks].join('\n')}\n`;
}
