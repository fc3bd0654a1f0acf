/** R19: a port that is taken away from a process: what it has in its rings stays until it lets go, and it is told why. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type NetmapPort, type NetmapRing, POLLIN } from '../../../src/api/index.ts';
import { fill, Lab } from './support.ts';

const MARK = 1234;

const rings = (port: NetmapPort): NetmapRing[] => [...port.txRings, ...port.rxRings];

/** Writes into every slot that the process has, and moves its position as if to send half of them. */
function mark(port: NetmapPort): void {
  for (const ring of rings(port)) {
    for (let i = 0; i < ring.numSlots; i++) ring.setLen(i, MARK + i);
  }
  for (const ring of port.txRings) ring.head = ring.cur = ring.numSlots >> 1;
}

/** All is as `mark` left it, every slot has a buffer, and every call says why the port is gone. */
function assertUntouched(port: NetmapPort, buffers: readonly number[], why: RegExp): void {
  for (const ring of port.txRings) assert.equal(ring.head, ring.numSlots >> 1, 'the position is still there');
  for (const ring of rings(port)) {
    for (let i = 0; i < ring.numSlots; i++) {
      assert.equal(ring.len(i), MARK + i, `slot ${i} of ${ring.name}`);
      assert.doesNotThrow(() => ring.bufOfs(i));
    }
  }
  assert.deepEqual(buffersOf(port), buffers);
  for (const call of [() => port.txsync(), () => port.rxsync(), () => port.poll(POLLIN, -1)]) {
    assert.throws(call, { name: 'SysError', message: why });
  }
}

const buffersOf = (port: NetmapPort): number[] =>
  rings(port).flatMap((ring) => Array.from({ length: ring.numSlots }, (_, i) => ring.bufIdx(i)));

/** Until the daemon has dealt with the disconnection of a port's device. */
const disconnected = (lab: Lab, name: string): Promise<void> =>
  lab.until((domains) => domains.flatMap((d) => d.ports).some((p) => p.name.startsWith(name) && !p.attached));

test('R19: the monitored port goes: its monitor’s slots stay as they are, and the monitor is told', async () => {
  const lab = await Lab.start();
  try {
    const port = await lab.open('vale0:a');
    const monitor = await lab.open('vale0:a/tr');
    mark(monitor);
    const buffers = buffersOf(monitor);
    await lab.close(port);
    await disconnected(lab, 'vale0:a/tr');
    assertUntouched(monitor, buffers, /^port vale0:a\/tr: the monitored port is gone: ENODEV$/);
  } finally {
    await lab.stop();
  }
});

test('R19, R20: the daemon is stopped: slots stay as they are, frames that had arrived can be read, every call says why', async () => {
  const lab = await Lab.start();
  try {
    const [a, b] = [await lab.open('vale0:a'), await lab.open('vale0:b')];
    fill(b, b.txRings[0]!, 7, 3);
    assert.equal(a.poll(POLLIN, 10_000), POLLIN);
    mark(a);
    const buffers = buffersOf(a);
    await lab.daemon.stop('the test wants it');
    assertUntouched(a, buffers, /^the daemon of port vale0:a is gone \(.*\): ENODEV$/);
    const [rx] = a.rxRings as [NetmapRing];
    assert.equal(rx.space(), 3);
    const numbers = [0, 1, 2].map((i) => new DataView(a.m.u8.buffer).getUint32(rx.bufOfs(i)));
    assert.deepEqual(numbers, [7, 8, 9]);
  } finally {
    await lab.stop();
  }
});
