/** The daemon's log: readable lines on a terminal, JSON lines (one object each) elsewhere. Written synchronously. */
import type { Logger } from 'pino';
import { pino } from 'pino';
import pretty from 'pino-pretty';
import type { LogLevel } from './config.ts';

export type { Logger } from 'pino';

/** A logger on stderr. Synchronous, so that nothing is lost when the process is ended at once (R20). */
export function createLogger(level: LogLevel, terminal = process.stderr.isTTY === true): Logger {
  const destination = pino.destination({ dest: 2, sync: true });
  if (!terminal) return pino({ level, base: null, timestamp: pino.stdTimeFunctions.isoTime }, destination);
  return pino(
    { level },
    pretty({ destination: 2, sync: true, ignore: 'pid,hostname', translateTime: 'SYS:HH:MM:ss.l' }),
  );
}
