/** A daemon whose guests are at rest is at rest: the one limit on time that the project sets itself. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { threadTimes, withLab } from './lab.ts';

const SECONDS = 10;
const MOST_TICKS = 5;
const MOST_SWITCHES = 200;
/** Node compiles and collects for a while after it was busy: a slow machine longer. */
const ROUNDS = 6;

test('10 s with two attached guests at rest: at most 5 clock ticks and 200 voluntary switches, all threads together', (t) =>
  withLab(async (lab) => {
    for (const name of ['vale0:a', 'vale0:b']) await lab.guest('rest', name).line(/^resting/);
    await setTimeout(5000);
    for (let round = 1; ; round++) {
      const before = threadTimes(lab.daemon.pid);
      await setTimeout(SECONDS * 1000);
      const threads = [...threadTimes(lab.daemon.pid)].map(([task, now]) => {
        const then = before.get(task) ?? { ticks: 0, switches: 0 };
        return { ticks: now.ticks - then.ticks, switches: now.switches - then.switches };
      });
      const ticks = threads.reduce((sum, thread) => sum + thread.ticks, 0);
      const switches = threads.reduce((sum, thread) => sum + thread.switches, 0);
      t.diagnostic(
        `${ticks} ticks, ${switches} voluntary switches of ${threads.map((thread) => thread.switches).join(' + ')}`,
      );
      if (ticks <= MOST_TICKS && switches <= MOST_SWITCHES) return;
      assert.ok(round < ROUNDS, `${ticks} ticks, ${switches} voluntary switches`);
    }
  }));
