/**
 * Packets between two processes through a daemon process: each arrives once, in order, intact; and where the receiver
 * cannot keep up, what is lost is counted, exactly.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { long, withLab } from './lab.ts';

const COUNT = long ? 10_000_000 : 1_000_000;

for (const bytes of [60, 1514, 9000]) {
  test(`${COUNT} packets of ${bytes} bytes, paced by feedback: each once, in order, intact`, () =>
    withLab(async (lab) => {
      const rx = lab.guest('stream', 'vale0:b', 'ack', bytes, COUNT, '02:00:00:00:00:01');
      const [, mac] = await rx.line(/^ready (\S+)/);
      const tx = lab.guest('stream', 'vale0:a', 'paced', bytes, COUNT, mac!);
      await Promise.all([rx.success(), tx.success()]);
      assert.ok(rx.lines.includes(JSON.stringify({ role: 'ack', result: COUNT })));
    }));
}

for (const bytes of [60, 1514, 9000]) {
  test(`R10: an overloaded receiver, ${bytes} bytes: received + counted drops = sent`, (t) =>
    withLab(async (lab) => {
      const count = (long ? 10_000_000 : 500_000) / (bytes === 9000 ? 5 : 1);
      const rx = lab.guest('stream', 'vale0:b', 'slow', bytes, count);
      const [, mac] = await rx.line(/^ready (\S+)/);
      const tx = lab.guest('stream', 'vale0:a', 'flood', bytes, count, mac!);
      await tx.line(/^\{/);
      rx.child.stdin.write('end\n');
      const [line] = await rx.line(/^\{.*/);
      const received = (JSON.parse(line) as { result: number }).result;
      const sent = (await lab.port('vale0:a'))!.txRings[0]!;
      const got = (await lab.port('vale0:b'))!.rxRings[0]!;
      const lost = Object.values(got.drops).reduce((sum, n) => sum + n, 0);
      t.diagnostic(`${count} sent, ${received} received, ${lost} dropped and counted (${JSON.stringify(got.drops)})`);
      assert.equal(sent.packets, count);
      assert.deepEqual(sent.drops, {});
      assert.equal(got.packets, received);
      assert.equal(received + lost, count);
      assert.ok(lost > 0, 'it was overloaded');
      rx.kill();
      tx.kill();
    }));
}
