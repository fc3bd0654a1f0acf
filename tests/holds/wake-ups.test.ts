/** Sleep and wake between two processes, with random pauses: nobody sleeps for good. */
import { test } from 'node:test';
import { long, withLab } from './lab.ts';

const COUNT = long ? 1_000_000 : 50_000;

test(`R12, R13: ${COUNT} ping-pongs with random pauses: no wake-up is lost for good, on either side`, (t) =>
  withLab(async (lab) => {
    const pong = lab.guest('ping-pong', 'vale0:b', 'pong', COUNT, 'ff:ff:ff:ff:ff:ff');
    const [, mac] = await pong.line(/^ready (\S+)/);
    const ping = lab.guest('ping-pong', 'vale0:a', 'ping', COUNT, mac!);
    await Promise.all([ping.success(), pong.success()]);
    const { longest, slow } = JSON.parse(ping.lines.at(-1)!) as { longest: number; slow: number };
    t.diagnostic(
      `longest round trip ${longest.toFixed(1)} ms; ${slow} of ${COUNT} took more than 90 ms (R12's sleep is 100)`,
    );
  }));
