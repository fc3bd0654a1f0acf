/** `ptnet stop`: ends a daemon as SIGTERM would. */
import { readFileSync } from 'node:fs';
import { setTimeout } from 'node:timers/promises';
import type { Command } from 'commander';
import { defaultRunDir, listDaemon, stopDaemon } from '../../api/index.ts';
import { type CommonFlags, command } from '../command.ts';

/** R20: a daemon ends within 2 s; some more for a busy machine. */
const PATIENCE_MS = 10_000;

export function stopCommand(): Command {
  return command('stop', 'end a running daemon, as SIGTERM would', [
    ['ptnet stop', "end the user's daemon"],
    ['ptnet stop --run-dir /tmp/lab', 'end the one with this run directory'],
  ]).action(async ({ runDir = defaultRunDir() }: CommonFlags) => {
    const { pid } = await listDaemon(runDir);
    await stopDaemon(runDir);
    for (let waited = 0; isAlive(pid); waited += 20) {
      if (waited >= PATIENCE_MS) throw new Error(`the daemon (pid ${pid}) has not ended after ${PATIENCE_MS / 1000} s`);
      await setTimeout(20);
    }
  });
}

/** Whether a process runs; one that has ended and is not yet collected by its parent (state Z) does not. */
function isAlive(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return stat[stat.lastIndexOf(')') + 2] !== 'Z';
  } catch {
    return false;
  }
}
