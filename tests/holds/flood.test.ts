/** A guest that floods: its neighbours lose nothing, and what it costs them is printed. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { long, type HoldsLab, type Process, withLab } from './lab.ts';

const COUNT = long ? 100_000 : 5_000;

interface Times {
  readonly p50: number;
  readonly p99: number;
}

/** Round trips between two guests of a switch. */
async function pingPong(lab: HoldsLab, round: number): Promise<Times> {
  const pong = lab.guest('ping-pong', `vale0:b${round}`, 'pong', COUNT, 'ff:ff:ff:ff:ff:ff');
  const [, mac] = await pong.line(/^ready (\S+)/);
  const ping = lab.guest('ping-pong', `vale0:a${round}`, 'ping', COUNT, mac!);
  await Promise.all([ping.success(), pong.success()]);
  return JSON.parse(ping.lines.at(-1)!) as Times;
}

const text = ({ p50, p99 }: Times): string => `p50 ${(p50 * 1000).toFixed(0)} µs, p99 ${(p99 * 1000).toFixed(0)} µs`;

test('R8: two guests beside one that floods, on the same switch: every packet arrives; their p99 is printed', (t) =>
  withLab(async (lab) => {
    t.diagnostic(`alone: ${text(await pingPong(lab, 0))}`);
    const flooder: Process = lab.guest('flooder', 'vale0:f');
    await flooder.line(/^flooding/);
    t.diagnostic(`beside a flooder: ${text(await pingPong(lab, 1))}`);
    assert.equal(flooder.ended, false, flooder.stderr);
    const { packets, drops } = (await lab.port('vale0:f'))!.txRings[0]!;
    t.diagnostic(`the flooder sent ${packets} packets of 1514 bytes (${JSON.stringify(drops)})`);
    assert.ok(packets > 0);
  }));
