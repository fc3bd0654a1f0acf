/** The daemon's log: readable lines on a terminal, JSON lines (one object each) elsewhere. Written synchronously. */
import type { Logger } from 'pino';
import { pino } from 'pino';
import pretty from 'pino-pretty';
import type { LogLevel } from './config.ts';

export type { Logger } from 'pino';

/** Bytes of lines that wait while stderr takes none (a full disk); further ones are dropped. */
const MAX_WAITING = 2 ** 20;

/**
 * A logger on stderr. Synchronous, so that nothing is lost when the process is ended at once (R20). A stderr that takes
 * nothing (nobody reads it any more, or it cannot be written) costs the lines, not the daemon.
 */
export function createLogger(level: LogLevel, terminal = process.stderr.isTTY === true): Logger {
  const destination = pino.destination({ dest: 2, sync: true, maxLength: MAX_WAITING }).on('error', () => undefined);
  if (!terminal) return pino({ level, base: null, timestamp: pino.stdTimeFunctions.isoTime }, destination);
  return pino({ level }, pretty({ destination, ignore: 'pid,hostname', translateTime: 'SYS:HH:MM:ss.l' }));
}
