/** Extra buffers (ni_bufs_head) of processes that end in whatever way. */
import assert from 'node:assert/strict';
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { after, before, test } from 'node:test';
import type { NetmapPort } from '../../../src/api/index.ts';
import { POLLIN } from '../../../src/api/index.ts';
import { receive, send } from '../../netmap-utils/functional.ts';
import { Lab, pump, range, take } from './support.ts';

let lab: Lab;
before(async () => {
  lab = await Lab.start();
});
after(() => lab.stop());

const SHAPE = { txSlots: 64, rxSlots: 64 };
const FRAMES = { len: 60, fill: 'x', num: 40 };

const buffersOf = (port: NetmapPort): number[] =>
  [...port.txRings, ...port.rxRings].flatMap((r) => Array.from({ length: r.numSlots }, (_, i) => r.bufIdx(i)));
const free = async (): Promise<number> => (await lab.regions()).find((r) => r.name === '@x')!.freeBuffers;

test('R19: kill -9 of a process with extra buffers: all come back, and its neighbours lose nothing', async () => {
  const a = await lab.open('vale0:a@x', SHAPE);
  const b = await lab.open('vale0:b@x', SHAPE);
  const end = await lab.open('netmap:q}1@x', SHAPE);
  const atFirst = await free();
  for (let round = 0; round < 4; round++) {
    assert.ok(send(a, FRAMES));
    const args = [lab.runDir, 'vale0:p@x', 'netmap:q{1@x', String(round)];
    const child = fork(new URL('./extra-child.js', import.meta.url), args);
    const [extra] = (await once(child, 'message')) as [number];
    assert.equal(extra, 50);
    child.kill('SIGKILL');
    await once(child, 'exit');
    await lab.until(
      (domains, regions) =>
        domains.flatMap((d) => d.ports).filter((p) => !('nobody' in p.owner)).length === 3 &&
        regions.some((r) => r.name === '@x' && r.freeBuffers === atFirst),
    );
    // What it had sent is there, in its extra buffers; what a had sent before, too.
    const sent: number[] = [];
    while (sent.length < 10 && end.poll(POLLIN, 5000) !== 0) sent.push(...take(end, end.rxRings[0]!));
    assert.deepEqual(sent, range(100, 10));
    receive(b, FRAMES);
    // Every buffer is in one place, and those that are in none can be had again, all of them.
    const rest = await lab.open('vale0:rest@x', { ...SHAPE, extraBufs: 65_536 });
    const all = [a, b, end, rest].flatMap(buffersOf).concat(rest.extraBufs);
    assert.equal(rest.extraBufs.length, atFirst - 128);
    assert.equal(new Set(all).size, all.length, 'no buffer in two hands');
    await lab.close(rest);
    await lab.until((_, regions) => regions.some((r) => r.name === '@x' && r.freeBuffers === atFirst));
    // And everything flows as before.
    assert.ok(send(b, FRAMES));
    receive(a, FRAMES);
    const begin = await lab.open('netmap:q{1@x');
    assert.deepEqual(pump(begin, end, 500, 300), range(500, 300));
    assert.deepEqual(pump(end, begin, 900, 300), range(900, 300));
    await lab.close(begin);
  }
  await lab.close(a, b, end);
  await lab.until((domains, regions) => domains.length === 0 && regions.length === 0);
});
