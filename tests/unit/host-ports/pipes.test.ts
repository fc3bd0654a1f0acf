/** Pipes between processes, through a daemon: order, back-pressure, ends that come and go. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { POLLOUT } from '../../../src/api/index.ts';
import { fill, Lab, pump, range, take } from './support.ts';

let lab: Lab;
before(async () => {
  lab = await Lab.start();
});
after(() => lab.stop());

test('R10: both ways, several times round the ring: in order, nothing lost, no copy', async () => {
  const a = await lab.open('netmap:p{1', { txSlots: 64, rxSlots: 32 });
  const b = await lab.open('netmap:p}1');
  assert.deepEqual(
    [a.txRings[0]!.numSlots, a.rxRings[0]!.numSlots, b.txRings[0]!.numSlots, b.rxRings[0]!.numSlots],
    [64, 32, 32, 64],
  );
  assert.deepEqual(pump(a, b, 0, 1000), range(0, 1000));
  assert.deepEqual(pump(b, a, 5000, 1000), range(5000, 1000));
  await lab.close(a, b);
  await lab.until((domains, regions) => domains.length === 0 && regions.length === 0);
});

test('R10: what is sent before the other end is opened waits for it; a full pipe holds the sender', async () => {
  const b = await lab.open('netmap:early}x', { txSlots: 16, rxSlots: 16 });
  const ring = b.txRings[0]!;
  assert.equal(fill(b, ring, 0, 100), 15);
  assert.equal(b.poll(POLLOUT, 50), 0, 'no room');
  const a = await lab.open('netmap:early{x');
  assert.deepEqual(take(a, a.rxRings[0]!, 5), range(0, 5));
  assert.equal(b.poll(POLLOUT, 2000), POLLOUT, 'room again');
  assert.equal(fill(b, ring, 15, 100), 5);
  const got: number[] = [];
  while (got.length < 15) got.push(...take(a, a.rxRings[0]!));
  assert.deepEqual(got, range(5, 15));
  await lab.close(a, b);
});

test('R19: an end goes and comes again: what waited still waits, the other end stays usable', async () => {
  const a = await lab.open('netmap:again{1', { txSlots: 32, rxSlots: 32 });
  let b = await lab.open('netmap:again}1');
  assert.deepEqual(pump(a, b, 0, 20), range(0, 20));
  assert.equal(fill(a, a.txRings[0]!, 20, 7), 7);
  await lab.until(([d]) => d!.ports.some((p) => p.name === 'netmap:again}1' && p.rxRings[0]!.packets === 27));
  await lab.close(b);
  await lab.until(([d]) => d!.ports.some((p) => p.name === 'netmap:again}1' && 'nobody' in p.owner));
  fill(a, a.txRings[0]!, 27, 3);
  b = await lab.open('netmap:again}1');
  assert.deepEqual(pump(a, b, 30, 40, 10), range(20, 50));
  assert.equal(fill(a, a.txRings[0]!, 70, 10), 10);
  await lab.close(a);
  const again = await lab.open('netmap:again{1');
  assert.deepEqual(pump(again, b, 80, 200, 10), range(70, 210));
  assert.deepEqual(pump(b, again, 900, 200), range(900, 200));
  await lab.close(b, again);
  await lab.until((domains, regions) => domains.length === 0 && regions.length === 0);
});

test('several rings: each pair is a pipe of its own', async () => {
  const a = await lab.open('vale5:x{n', { txRings: 2, rxRings: 3, txSlots: 16, rxSlots: 8 });
  const b = await lab.open('vale5:x}n');
  assert.deepEqual([b.txRings.length, b.rxRings.length], [3, 2]);
  for (const i of [0, 1]) fill(a, a.txRings[i]!, 100 * i, 3);
  for (const i of [0, 1, 2]) fill(b, b.txRings[i]!, 1000 * i, 2);
  const wait = async (port: typeof a, i: number, count: number): Promise<number[]> => {
    const got: number[] = [];
    while (got.length < count) got.push(...take(port, port.rxRings[i]!));
    return got;
  };
  for (const i of [0, 1]) assert.deepEqual(await wait(b, i, 3), range(100 * i, 3));
  for (const i of [0, 1, 2]) assert.deepEqual(await wait(a, i, 2), range(1000 * i, 2));
  await lab.close(a, b);
});
