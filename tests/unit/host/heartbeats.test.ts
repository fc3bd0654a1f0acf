/** R15: when a datapath thread's write counts as stuck, tick by tick. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Heartbeats } from '../../../src/host/heartbeats.ts';
import { CTL } from '../../../src/kloop/index.ts';
import { closeFd, eventfd, eventfdIsFull, eventfdRead, eventfdSignal } from '../../../src/os/index.ts';
import { fill } from '../device/hostile.ts';

function watched(): { ctl: Int32Array; heartbeats: Heartbeats; stuck: number[] } {
  const ctl = new Int32Array(new SharedArrayBuffer(4 * CTL.LENGTH));
  const stuck: number[] = [];
  return { ctl, heartbeats: new Heartbeats(ctl, (fd) => void stuck.push(fd)), stuck };
}

test('R15: a write to a full eventfd is freed after more than 10 ms, and reported once', () => {
  const { ctl, heartbeats, stuck } = watched();
  const fd = eventfd();
  fill(fd);
  Atomics.store(ctl, CTL.WRITING, fd + 1);
  for (let i = 0; i < 3; i++) {
    heartbeats.tick();
    assert.deepEqual(stuck, []);
  }
  heartbeats.tick();
  assert.deepEqual(stuck, [fd]);
  assert.equal(eventfdIsFull(fd), false);
  closeFd(fd);
});

test('R15: a thread that a busy machine holds up in the middle of a write is left alone, and its interrupt too', () => {
  const { ctl, heartbeats, stuck } = watched();
  const fd = eventfd();
  eventfdSignal(fd);
  Atomics.store(ctl, CTL.WRITING, fd + 1);
  for (let i = 0; i < 100; i++) heartbeats.tick();
  assert.deepEqual(stuck, []);
  assert.equal(eventfdRead(fd), 1n, 'the interrupt is still there');
  closeFd(fd);
});

test('R15: writes to different descriptors, and turns in between, are not one long write', () => {
  const { ctl, heartbeats, stuck } = watched();
  const fds = [eventfd(), eventfd()];
  fds.forEach(fill);
  for (let i = 0; i < 20; i++) {
    Atomics.store(ctl, CTL.WRITING, fds[i % 2]! + 1);
    heartbeats.tick();
  }
  for (let i = 0; i < 20; i++) {
    Atomics.add(ctl, CTL.HEARTBEAT, 1);
    heartbeats.tick();
  }
  assert.deepEqual(stuck, []);
  fds.forEach(closeFd);
});

test('watching ends when the thread has slept for a while', () => {
  const { ctl, heartbeats } = watched();
  Atomics.store(ctl, CTL.WATCHED, 1);
  heartbeats.watch();
  Atomics.store(ctl, CTL.ASLEEP, 1);
  heartbeats.tick();
  assert.equal(Atomics.load(ctl, CTL.WATCHED), 1);
  Atomics.store(ctl, CTL.ASLEEP, 0);
  heartbeats.tick();
  Atomics.store(ctl, CTL.ASLEEP, 1);
  for (let i = 0; i < 50; i++) heartbeats.tick();
  assert.equal(Atomics.load(ctl, CTL.WATCHED), 0);
});
